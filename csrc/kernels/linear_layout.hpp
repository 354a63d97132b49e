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

// Of int4_asymmetric.
inline int64_t asymmetric_group_bytes(int64_t size) { return group_bytes<float>(size) + factor_bytes<int8_t>; }

inline int64_t panel_bytes(const LinearWeight& weight) {
  switch (weight.type) {
    case WeightType::int8:
      return int8_steps(weight.k) * step_bytes;
    case WeightType::int4:
      return weight.k / weight.group * group_bytes<float>(weight.group);
    case WeightType::int4_progressive:
      return weight.k / weight.group * group_bytes<uint8_t>(weight.group);
    case WeightType::int4_asymmetric:
      return weight.k / weight.group * asymmetric_group_bytes(weight.group);
    case WeightType::bfloat16:
    case WeightType::float16:
      return weight.k * panel_columns * 2;
    case WeightType::float32:
      return weight.k * panel_columns * 4;
  }
  return 0;
}

// Cuts a product of a packed weight for so many threads, from measurements. A task works on at most `chunk` rows at a time;
// up to `few` rows meet the weight as it streams by.
inline LinearTasks cut(const LinearWeight& weight, int64_t rows, int threads, int64_t chunk, int64_t few) {
  const int64_t panels = panels_of(weight.n), bytes = panel_bytes(weight) * panels;
  if (!rows || !panels) return {0, 1, 1};
  int64_t row_blocks = ceil_div(rows, chunk), blocks = 1;
  if (threads > 1) {
    // Several tasks a thread, so that one that the system puts aside is made up for by the others; few rows, which the weight
    // streams by, make the smallest tasks that are worth the claiming, because a thread goes through its share in order.
    const int64_t cost = bytes * (rows > 16 ? rows / 16 : 1), most = (rows > few ? 8 : 64) * threads;
    blocks = cost / (32 * 1024);
    if (blocks > most) blocks = most;
    if (blocks < 1) blocks = 1;
    const int64_t most_row_blocks = ceil_div(rows, 4 * few);
    if (row_blocks * panels < blocks) row_blocks = ceil_div(blocks, panels);
    if (row_blocks > most_row_blocks) row_blocks = most_row_blocks;
    blocks = ceil_div(blocks, row_blocks);
  }
  const int64_t at_once = ceil_div(panels, blocks), rows_at_once = ceil_div(rows, row_blocks);
  return {ceil_div(rows, rows_at_once) * ceil_div(panels, at_once), rows_at_once, at_once};
}

// Calls body(row, rows, first, last) for the chunks of rows of one task of a product, each with panels [first, last).
template <class Body>
inline void each_chunk(const LinearWeight& weight, int64_t all_rows, const LinearTasks& tasks, int64_t task, int64_t chunk,
                       const Body& body) {
  const int64_t row_blocks = ceil_div(all_rows, tasks.rows), panels = panels_of(weight.n);
  // Neighbouring tasks share panels: the second to come finds them in the cache that the cores have together.
  const int64_t row = task % row_blocks * tasks.rows, first = task / row_blocks * tasks.panels;
  const int64_t end = row + tasks.rows < all_rows ? row + tasks.rows : all_rows;
  const int64_t last = first + tasks.panels < panels ? first + tasks.panels : panels;
  for (int64_t from = row; from < end; from += chunk) body(from, end - from < chunk ? end - from : chunk, first, last);
}

}  // namespace ssmquant::SSMQUANT_ISA
