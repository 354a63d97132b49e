#include <cmath>
#include <cstring>

#include "kernels/transform.hpp"
#include "kernels/values.hpp"
#include "simd/repeat.hpp"
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

// The butterflies of `radix` runs of `length` floats, `length` apart; put(place, vector, lanes) takes the results.
template <int radix, class Put>
void butterflies(const float* x, int64_t length, const Put& put) {
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
    for (int i = 0; i < radix; ++i) put(i * length + at, v[i], lanes);
  });
}

// The last pass has the whole row in its runs, and writes the results as row r of `out`.
template <int radix>
void pass(float* x, int64_t n, int64_t length, const Output& out, int64_t r) {
  if (radix * length == n) {
    butterflies<radix>(x, length, [&](int64_t c, F32 y, auto lanes) { emit(y, out, r, c, lanes); });
    return;
  }
  for (int64_t at = 0; at < n; at += radix * length) {
    float* const to = x + at;
    butterflies<radix>(to, length, [&](int64_t place, F32 y, auto lanes) { store(y, to + place, lanes); });
  }
}

// The product of runs of m floats, in place, by the base matrix (transposed, rows `stride` apart) and a factor.
struct Dense {
  int64_t m;
  const float* base;
  int64_t stride;
  F32 factor;

  // The butterflies between registers of runs that are `width` runs apart.
  template <int width, int runs, int vectors>
  SSMQUANT_INLINE static void mix(F32* sums) {
    repeat<runs>([&](auto r) SSMQUANT_INLINE {
      if constexpr (!(r & width)) {
        repeat<vectors>([&](auto v) SSMQUANT_INLINE {
          F32 &a = sums[r * vectors + v], &b = sums[(r + width) * vectors + v];
          const F32 low = a, high = b;
          a = low + high;
          b = low - high;
        });
      }
    });
  }

  // `runs` neighbouring runs, and the butterflies between them; `padded` is the base matrix with rows of `vectors` whole vectors.
  template <int runs, int vectors>
  void multiply(const float* padded, float* x) const {
    F32 sums[runs * vectors];
    repeat<runs * vectors>([&](auto i) SSMQUANT_INLINE { sums[i] = F32::zero(); });
    for (int64_t k = 0; k < m; ++k, padded += vectors * F32::width) {
      F32 row[vectors];
      repeat<vectors>([&](auto v) SSMQUANT_INLINE { row[v] = F32::load(padded + v * F32::width); });
      repeat<runs>([&](auto r) SSMQUANT_INLINE {
        const F32 from = F32::broadcast(x[r * m + k]);
        repeat<vectors>([&](auto v) SSMQUANT_INLINE { sums[r * vectors + v] = fma(from, row[v], sums[r * vectors + v]); });
      });
    }
    if constexpr (runs > 1) mix<1, runs, vectors>(sums);
    if constexpr (runs > 2) mix<2, runs, vectors>(sums);
    if constexpr (runs > 4) mix<4, runs, vectors>(sums);
    const int tail = static_cast<int>(m - (vectors - 1) * F32::width);
    repeat<runs>([&](auto r) SSMQUANT_INLINE {
      float* to = x + r * m;
      repeat<vectors - 1>([&](auto v) SSMQUANT_INLINE { (sums[r * vectors + v] * factor).store(to + v * F32::width); });
      const F32 last = sums[r * vectors + vectors - 1] * factor;
      to += (vectors - 1) * F32::width;
      tail == F32::width ? last.store(to) : last.store_first(to, tail);
    });
  }

  template <int vectors>
  int64_t each(float* x, int64_t n) const {
    constexpr int64_t width = vectors * F32::width;
    constexpr int runs = F32::registers >= 32 && vectors <= 2 ? 8 : vectors <= 3 ? 4 : 2;
    alignas(64) float padded[width * width];
    for (int64_t k = 0; k < m; ++k) {
      memcpy(padded + k * width, base + k * stride, sizeof(float) * static_cast<size_t>(m));
      memset(padded + k * width + m, 0, sizeof(float) * static_cast<size_t>(width - m));
    }
    if (n < runs * m) {
      for (int64_t at = 0; at < n; at += m) multiply<1, vectors>(padded, x + at);
      return 1;
    }
    for (int64_t at = 0; at < n; at += runs * m) multiply<runs, vectors>(padded, x + at);
    return runs;
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

  // Returns how many neighbouring runs have had the butterflies between them, too.
  int64_t run(float* x, int64_t n) const {
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
        each_long(x, n);
        return 1;
    }
  }
};

}  // namespace

void transform(float* row, int64_t channels, const Hadamard& hadamard, float scale, const Output& out, int64_t r) {
  const bool power_of_two = hadamard.m == 1;
  const float* base = power_of_two ? &sylvester.signs[0][0] : hadamard.base;
  const int64_t m = !power_of_two ? hadamard.m : channels < kSylvester ? channels : kSylvester;
  const int64_t stride = power_of_two ? kSylvester : m;
  const float factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(channels))) * scale;
  int64_t length = m * Dense{m, base, stride, F32::broadcast(factor)}.run(row, channels);
  if (length == channels) return emit(row, channels, out, r);
  while (length < channels) {
    const int64_t left = channels / length;
    if (left % 8 == 0) {
      pass<8>(row, channels, length, out, r);
      length *= 8;
    } else if (left % 4 == 0) {
      pass<4>(row, channels, length, out, r);
      length *= 4;
    } else {
      pass<2>(row, channels, length, out, r);
      length *= 2;
    }
  }
}

}  // namespace ssmquant::SSMQUANT_ISA
