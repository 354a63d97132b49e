// Where things are in a packed weight; see linear.hpp.
#pragma once

#include <cstdint>

#include "kernels/linear.hpp"
#include "simd/dot.hpp"

namespace ssmquant::SSMQUANT_ISA {

constexpr int64_t panel_columns = Dot::width * Dot::vectors;
constexpr int64_t step_bytes = 4 * panel_columns;  // of a panel: 4 bytes of each column

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t panels_of(int64_t n) { return ceil_div(n, panel_columns); }

// Columns of a panel that are not padding.
inline int64_t columns_of(int64_t n, int64_t panel) {
  const int64_t left = n - panel * panel_columns;
  return left < panel_columns ? left : panel_columns;
}

// Int8 steps take 4 codes of K, int4 steps 8.
inline int64_t int8_steps(int64_t k) { return ceil_div(k, 4); }
inline int64_t int4_steps(int64_t size) { return ceil_div(size, 8); }

// What comes behind the codes of a group in a panel: a scale or a grid for each column.
template <class Factor>
constexpr int64_t factor_bytes = panel_columns * sizeof(Factor);

template <class Factor>
inline int64_t group_bytes(int64_t size) {
  return int4_steps(size) * step_bytes + factor_bytes<Factor>;
}

inline int64_t panel_bytes(const LinearWeight& weight) {
  if (weight.type == WeightType::int8) return int8_steps(weight.k) * step_bytes;
  const int64_t groups = weight.k / weight.group;
  return groups * (weight.type == WeightType::int4 ? group_bytes<float>(weight.group) : group_bytes<uint8_t>(weight.group));
}

}  // namespace ssmquant::SSMQUANT_ISA
