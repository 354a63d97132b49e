#include <cmath>
#include <cstring>

#include "kernels/transform.hpp"
#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

constexpr int kSylvester = 16;  // channels of a power of two end in a dense matrix, too: neighbours share a vector

struct Sylvester {
  float signs[kSylvester][kSylvester];
  constexpr Sylvester() : signs() {
    for (int i = 0; i < kSylvester; ++i) {
      for (int j = 0; j < kSylvester; ++j) {
        int common = i & j, bits = 0;
        for (; common; common >>= 1) bits += common & 1;
        signs[i][j] = bits % 2 ? -1.0f : 1.0f;
      }
    }
  }
};
constexpr Sylvester sylvester;

// The butterflies of `radix` runs of `length` floats, `length` apart.
template <int radix>
void butterflies(float* x, int64_t length) {
  each_vector(length, [&](int64_t at, auto lanes) {
    F32 v[radix];
    for (int i = 0; i < radix; ++i) v[i] = load(x + i * length + at, lanes);
    for (int width = 1; width < radix; width *= 2) {
      for (int i = 0; i < radix; ++i) {
        if (i & width) continue;
        const F32 low = v[i], high = v[i + width];
        v[i] = low + high;
        v[i + width] = low - high;
      }
    }
    for (int i = 0; i < radix; ++i) store(v[i], x + i * length + at, lanes);
  });
}

template <int radix>
void pass(float* x, int64_t n, int64_t length) {
  for (int64_t at = 0; at < n; at += radix * length) butterflies<radix>(x + at, length);
}

// `count` neighbouring runs of m floats, each times the base matrix (transposed, rows `stride` apart) and the factor.
template <int count>
void dense(float* x, int64_t m, const float* base, int64_t stride, float factor) {
  constexpr int64_t largest = 320;  // base_order finds none above 300
  float out[count][largest];
  each_vector(m, [&](int64_t at, auto lanes) {
    F32 sum[count];
    for (int b = 0; b < count; ++b) sum[b] = F32::zero();
    for (int64_t j = 0; j < m; ++j) {
      const F32 column = load(base + j * stride + at, lanes);
      for (int b = 0; b < count; ++b) sum[b] = fma(F32::broadcast(x[b * m + j]), column, sum[b]);
    }
    for (int b = 0; b < count; ++b) store(sum[b] * F32::broadcast(factor), out[b] + at, lanes);
  });
  for (int b = 0; b < count; ++b) memcpy(x + b * m, out[b], sizeof(float) * static_cast<size_t>(m));
}

}  // namespace

void transform(float* row, int64_t channels, const Hadamard& hadamard) {
  const bool power_of_two = hadamard.m == 1;
  const float* base = power_of_two ? &sylvester.signs[0][0] : hadamard.base;
  const int64_t m = !power_of_two ? hadamard.m : channels < kSylvester ? channels : kSylvester;
  const int64_t stride = power_of_two ? kSylvester : m;
  for (int64_t length = m; length < channels;) {
    const int64_t left = channels / length;
    if (left % 8 == 0) {
      pass<8>(row, channels, length);
      length *= 8;
    } else if (left % 4 == 0) {
      pass<4>(row, channels, length);
      length *= 4;
    } else {
      pass<2>(row, channels, length);
      length *= 2;
    }
  }
  const float factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(channels)));
  int64_t at = 0;
  for (; at + 4 * m <= channels; at += 4 * m) dense<4>(row + at, m, base, stride, factor);
  for (; at < channels; at += m) dense<1>(row + at, m, base, stride, factor);
}

}  // namespace ssmquant::SSMQUANT_ISA
