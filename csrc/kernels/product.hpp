// Products of small float matrices, held in registers: sums[r][v] += sum over k of a[r, k] * b[k, vector v].
#pragma once

#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {

// Rows and vectors of a block: as many sums as there are registers for, enough to hide the latency of a fused product.
constexpr int kRows = F32::registers >= 32 ? 6 : 4;
constexpr int kVectors = F32::registers >= 32 ? 4 : 2;

template <int rows, int vectors>
struct Sums {
  F32 v[rows][vectors];

  void clear() {
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < vectors; ++i) v[r][i] = F32::zero();
    }
  }

  // a: rows a_stride apart; b: rows b_stride apart.
  void add(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t k) {
    add(a, a_stride, b, b_stride, k, [](F32 left, F32 right, F32 sum) { return fma(left, right, sum); });
  }

  // The same with multiply(left, right, sum) in place of the fused product.
  template <class Multiply>
  void add(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t k, const Multiply& multiply) {
    F32 sums[rows][vectors];
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < vectors; ++i) sums[r][i] = v[r][i];
    }
    for (int64_t at = 0; at < k; ++at, b += b_stride) {
      F32 right[vectors];
      for (int i = 0; i < vectors; ++i) right[i] = F32::load(b + i * F32::width);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const F32 left = F32::broadcast(a[r * a_stride + at]);
        for (int i = 0; i < vectors; ++i) sums[r][i] = multiply(left, right[i], sums[r][i]);
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < vectors; ++i) v[r][i] = sums[r][i];
    }
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
