#include <cmath>
#include <cstring>

#include "kernels/transform.hpp"
#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

constexpr int64_t kLongest = 320;  // base_order finds no dense matrix above 300
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

// The product of runs of m floats, in place, by the base matrix (transposed, rows `stride` apart) and a factor.
struct Dense {
  int64_t m;
  const float* base;
  int64_t stride;
  F32 factor;

  // `runs` neighbouring runs; `padded` is the base matrix with rows of `vectors` whole vectors.
  template <int runs, int vectors>
  void multiply(const float* padded, float* x) const {
    F32 sums[runs][vectors];
    for (int r = 0; r < runs; ++r) {
      for (int v = 0; v < vectors; ++v) sums[r][v] = F32::zero();
    }
    for (int64_t k = 0; k < m; ++k, padded += vectors * F32::width) {
      F32 row[vectors];
      for (int v = 0; v < vectors; ++v) row[v] = F32::load(padded + v * F32::width);
#pragma GCC unroll 8
      for (int r = 0; r < runs; ++r) {
        const F32 from = F32::broadcast(x[r * m + k]);
        for (int v = 0; v < vectors; ++v) sums[r][v] = fma(from, row[v], sums[r][v]);
      }
    }
    const int tail = static_cast<int>(m - (vectors - 1) * F32::width);
    for (int r = 0; r < runs; ++r) {
      float* to = x + r * m;
      for (int v = 0; v + 1 < vectors; ++v) (sums[r][v] * factor).store(to + v * F32::width);
      const F32 last = sums[r][vectors - 1] * factor;
      if (tail == F32::width) {
        last.store(to + (vectors - 1) * F32::width);
      } else {
        last.store_first(to + (vectors - 1) * F32::width, tail);
      }
    }
  }

  template <int vectors>
  void each(float* x, int64_t n) const {
    constexpr int64_t width = vectors * F32::width;
    constexpr int runs = F32::registers >= 32 && vectors <= 2 ? 8 : vectors <= 3 ? 4 : 2;
    alignas(64) float padded[width * width] = {};
    for (int64_t k = 0; k < m; ++k) memcpy(padded + k * width, base + k * stride, sizeof(float) * static_cast<size_t>(m));
    int64_t at = 0;
    for (; at + runs * m <= n; at += runs * m) multiply<runs, vectors>(padded, x + at);
    for (; at < n; at += m) multiply<1, vectors>(padded, x + at);
  }

  // Any m: the results of a run wait until all of its inputs have been read.
  void each_long(float* x, int64_t n) const {
    float results[kLongest];
    for (int64_t at = 0; at < n; at += m) {
      each_vector(m, [&](int64_t i, auto lanes) {
        F32 sum = F32::zero();
        for (int64_t k = 0; k < m; ++k) sum = fma(F32::broadcast(x[at + k]), load(base + k * stride + i, lanes), sum);
        store(sum * factor, results + i, lanes);
      });
      memcpy(x + at, results, sizeof(float) * static_cast<size_t>(m));
    }
  }

  void run(float* x, int64_t n) const {
    switch ((m + F32::width - 1) / F32::width) {
      case 1:
        return each<1>(x, n);
      case 2:
        return each<2>(x, n);
      case 3:
        return each<3>(x, n);
      case 4:
        return each<4>(x, n);
      case 5:
        return each<5>(x, n);
      default:
        return each_long(x, n);
    }
  }
};

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
  Dense{m, base, stride, F32::broadcast(factor)}.run(row, channels);
}

}  // namespace ssmquant::SSMQUANT_ISA
