// Products of small float matrices, held in registers: sums[r][v] += sum over k of a[r, k] * b[k, vector v].
#pragma once

#include "simd/repeat.hpp"
#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {

// Rows and vectors of a block: as many sums as there are registers for, enough to hide the latency of a fused product.
constexpr int kRows = 4;
constexpr int kVectors = F32::registers >= 32 ? 4 : 2;

template <int rows, int vectors>
struct Sums {
  F32 v[rows * vectors];  // row after row

  // body(row, vector, sum) for every sum; the numbers are the compiler's constants.
  template <class Body>
  SSMQUANT_INLINE void each(const Body& body) {
    repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE {
      body(std::integral_constant<int, i / vectors>{}, std::integral_constant<int, i % vectors>{}, v[i]);
    });
  }

  SSMQUANT_INLINE void clear() {
    each([](auto, auto, F32& sum) SSMQUANT_INLINE { sum = F32::zero(); });
  }

  // a: rows a_stride apart; b: rows b_stride apart.
  SSMQUANT_INLINE void add(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t k) {
    add(a, a_stride, b, b_stride, k, [](F32 left, F32 right, F32 sum) { return fma(left, right, sum); });
  }

  // The same with multiply(left, right, sum) in place of the fused product.
  template <class Multiply>
  SSMQUANT_INLINE void add(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t k,
                           const Multiply& multiply) {
    F32 sums[rows * vectors];
    repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { sums[i] = v[i]; });
    for (const float* const end = a + k; a != end; ++a, b += b_stride) {
      __asm__("" : "+r"(a));  // or else gcc keeps a pointer to each row, more than it has registers for
      F32 right[vectors];
      repeat<vectors>([&](auto i) SSMQUANT_INLINE { right[i] = F32::load(b + i * F32::width); });
      repeat<rows>([&](auto r) SSMQUANT_INLINE {
        const F32 left = F32::broadcast(a[r * a_stride]);
        repeat<vectors>([&](auto i) SSMQUANT_INLINE {
          sums[r * vectors + i] = multiply(left, right[i], sums[r * vectors + i]);
        });
      });
    }
    repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE {
      hold(sums[i]);
      v[i] = sums[i];
    });
  }
};

template <int value>
struct Constant {
  static constexpr int number = value;
};

// Calls body(row, rows, column, vectors) for blocks of rows and of vectors that cover rows x (vectors * F32::width).
template <class Body>
inline void each_block(int64_t rows, int64_t vectors, const Body& body) {
  const auto rows_of = [&](int64_t column, auto wide) {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) body(row, Constant<kRows>{}, column, wide);
    for (; row + 2 <= rows; row += 2) body(row, Constant<2>{}, column, wide);
    if (row < rows) body(row, Constant<1>{}, column, wide);
  };
  const int64_t whole = vectors - vectors % kVectors;
  for (int64_t v = 0; v < whole; v += kVectors) rows_of(v * F32::width, Constant<kVectors>{});
  for (int64_t v = whole; v < vectors; ++v) rows_of(v * F32::width, Constant<1>{});
}

}  // namespace ssmquant::SSMQUANT_ISA
