#include "kernels/linear.hpp"

#include "kernels/linear_layout.hpp"
#include "kernels/linear_pack.hpp"
#include "kernels/table.hpp"
#include "simd/dot.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

using Sum = Dot::Sum;
constexpr int vectors = Dot::vectors;

// Rows of x that are worked on together: each panel meets all of them while both are in the second cache.
constexpr int64_t chunk_rows = 256, chunk_bytes = 512 * 1024;
// Int4 weights are made bytes, so many at once, where enough rows meet them.
constexpr int64_t expanded_bytes = 65536;
constexpr int64_t expanded_rows = 2 * Dot::rows;
// Bytes between what is multiplied and what is fetched, where one sweep over the weight is all.
constexpr int64_t distance = 4096;

// Some rows of x against one panel, or against some groups of it.
struct Block {
  const Linear* linear;
  int64_t row, rows, column;
  const int8_t* x;
  const uint8_t* w;
  const int32_t* start;  // [rows][groups of K]: minus what the offset of the weight's codes brings in
  int64_t start_stride;
  float* y;  // [rows][panel_columns], results before scale and bias; of int4, the sum of the groups so far
  int64_t y_stride;  // between rows of different calls: 0 where nothing stays behind
  int64_t groups, steps;  // steps of a group; int8: one group
  int64_t w_stride, scale_stride;  // from one group to the next
  const float* scale;
};

// What is fetched while a block is multiplied, `step` bytes with each of its steps.
struct Ahead {
  const uint8_t* from;
  int64_t step;
};

// Four codes of x in each row meet the four bytes of each column at `w`, as `load` reads and `add` multiplies them.
template <int rows, class Load, class Add>
SSMQUANT_INLINE inline void meet(const Load& load, const Add& add, const uint8_t* w, const int8_t* x, int64_t x_stride,
                                 Sum* sums) {
  Dot::Weight weight[vectors];
  repeat<vectors>([&](auto v) SSMQUANT_INLINE { weight[v] = load(w + v * 4 * Dot::width); });
  repeat<rows>([&](auto r) SSMQUANT_INLINE {
    const Dot::Input input = Dot::broadcast(x + r * x_stride);
    repeat<vectors>([&](auto v) SSMQUANT_INLINE {
      sums[r * vectors + v] = add(sums[r * vectors + v], weight[v], input);
    });
  });
}

// How the bytes of a step meet `depth` codes of x, and into which cache the next are fetched: the first where they are wanted
// within some hundred cycles.
template <int cache>
struct Int8Codes {
  static constexpr int depth = 4, locality = 4 - cache;

  template <int rows>
  SSMQUANT_INLINE static void step(const uint8_t* w, const int8_t* x, int64_t x_stride, Sum* sums) {
    meet<rows>(Dot::load, Dot::add, w, x, x_stride, sums);
  }
};

struct ExpandedCodes {
  static constexpr int depth = 4, locality = 2;

  template <int rows>
  SSMQUANT_INLINE static void step(const uint8_t* w, const int8_t* x, int64_t x_stride, Sum* sums) {
    meet<rows>(Dot::load, Dot::add_small, w, x, x_stride, sums);
  }
};

struct Int4Codes {
  static constexpr int depth = 8, locality = 3;

  static Dot::Weight low(const uint8_t* w) { return Dot::low(Dot::load(w)); }
  static Dot::Weight high(const uint8_t* w) { return Dot::high(Dot::load(w)); }

  // One half after the other: both at once want more registers than there are.
  template <int rows>
  SSMQUANT_INLINE static void step(const uint8_t* w, const int8_t* x, int64_t x_stride, Sum* sums) {
    meet<rows>(low, Dot::add_small, w, x, x_stride, sums);
    meet<rows>(high, Dot::add_small, w, x + 4, x_stride, sums);
  }
};

template <class Codes>
SSMQUANT_INLINE inline void fetch(const uint8_t* p) {
  for (int64_t i = 0; i < step_bytes; i += 64) __builtin_prefetch(p + i, 0, Codes::locality);
}

// sums[row][vector] = start[row * start_stride] + the products of `steps` steps. With few rows, neighbouring steps go to sums of
// their own, because one product must not wait for another.
template <class Codes, int rows>
SSMQUANT_INLINE inline void multiply(const uint8_t* w, const int8_t* x, int64_t x_stride, int64_t steps, Ahead ahead,
                                     const int32_t* start, int64_t start_stride, Sum (&sums)[rows * vectors]) {
  constexpr int tile = rows * vectors, most = Dot::rows * vectors < 16 ? Dot::rows * vectors : 16;
  constexpr int chains = 4 * tile <= most ? 4 : 2 * tile <= most ? 2 : 1;
  Sum parts[chains * tile];
  repeat<tile>([&](auto i) SSMQUANT_INLINE { parts[i] = Dot::all(start[i / vectors * start_stride]); });
  repeat<(chains - 1) * tile>([&](auto i) SSMQUANT_INLINE { parts[tile + i] = Dot::all(0); });
  int64_t left = steps;
  for (; left >= chains; left -= chains) {
    repeat<chains>([&](auto c) SSMQUANT_INLINE {
      fetch<Codes>(ahead.from);
      ahead.from += ahead.step;
      Codes::template step<rows>(w + c * step_bytes, x + c * Codes::depth, x_stride, parts + c * tile);
    });
    w += chains * step_bytes;
    x += chains * Codes::depth;
  }
  if constexpr (chains > 1) {
    for (; left > 0; --left, w += step_bytes, x += Codes::depth) {
      fetch<Codes>(ahead.from);
      ahead.from += ahead.step;
      Codes::template step<rows>(w, x, x_stride, parts);
    }
  }
  repeat<chains * tile>([&](auto i) SSMQUANT_INLINE { Dot::hold(parts[i]); });
  repeat<tile>([&](auto i) SSMQUANT_INLINE {
    repeat<chains - 1>([&](auto c) SSMQUANT_INLINE { parts[i] = Dot::join(parts[i], parts[(c + 1) * tile + i]); });
    sums[i] = parts[i];
  });
}

// y = the sums of a whole row of K.
template <class Codes, int rows>
__attribute__((noinline)) void int8_tile(const uint8_t* w, const int8_t* x, int64_t x_stride, int64_t steps, Ahead ahead,
                                         const int32_t* start, int64_t start_stride, const float*, float* y) {
  Sum sums[rows * vectors];
  multiply<Codes, rows>(w, x, x_stride, steps, ahead, start, start_stride, sums);
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { Dot::to_float(sums[i]).store(y + i * Dot::width); });
}

// y = y + the sums of a group * its scales.
template <class Codes, int rows>
__attribute__((noinline)) void int4_tile(const uint8_t* w, const int8_t* x, int64_t x_stride, int64_t steps, Ahead ahead,
                                         const int32_t* start, int64_t start_stride, const float* scale, float* y) {
  Sum sums[rows * vectors];
  multiply<Codes, rows>(w, x, x_stride, steps, ahead, start, start_stride, sums);
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE {
    float* total = y + i * Dot::width;
    (F32::load(total) + Dot::to_float(sums[i]) * F32::load(scale + i % vectors * Dot::width)).store(total);
  });
}

// Channels [column, column + n) of values with a step, n <= F32::width.
SSMQUANT_INLINE inline F32 channels(const float* values, int64_t step, int64_t column, int64_t n) {
  if (!step) return F32::broadcast(values[0]);
  return n == F32::width ? F32::load(values + column) : F32::load_first(values + column, static_cast<int>(n));
}

// Fetches the places of results in order to write them: they arrive while the rows are multiplied.
void claim(const Block& block, int64_t from, int64_t rows) {
  const Output& out = block.linear->out;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (block.row + from + r) * out.stride + block.column;
    if (out.codes) {
      __builtin_prefetch(out.codes + at, 1);
      continue;
    }
    for (int64_t i = 0; i < panel_columns; i += 64 / sizeof(float)) __builtin_prefetch(out.floats + at + i, 1);
  }
}

// From y: * scale, + bias, then codes or floats. Every product and sum is rounded apart, as in the reference.
void finish(const Block& block, int64_t from, int64_t rows, const float* y) {
  const Linear& linear = *block.linear;
  const Output& out = linear.out;
  for (int v = 0; v < vectors; ++v) {
    const int64_t at = block.column + v * Dot::width;
    const int64_t n = linear.weight.n - at < Dot::width ? linear.weight.n - at : Dot::width;
    if (n <= 0) return;
    const bool whole = n == Dot::width;
    const int part = static_cast<int>(n);
    const bool int8 = linear.weight.group == 0;
    const F32 scale = int8 ? channels(linear.weight_scale.values, linear.weight_scale.step, at, n) : F32::zero();
    const F32 bias = linear.bias ? channels(linear.bias, 1, at, n) : F32::zero();
    const F32 factor = out.codes ? channels(out.reciprocal.values, out.reciprocal.step, at, n) : F32::zero();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = block.row + from + r, place = row * out.stride + at;
      const F32 x_scale = F32::broadcast(linear.x_scale.values[row * linear.x_scale.step]);
      F32 value = F32::load(y + r * panel_columns + v * Dot::width) * (int8 ? x_scale * scale : x_scale);
      if (linear.bias) value = value + bias;
      if (out.codes) {
        value = value * factor;
        whole ? value.store_codes(out.codes + place) : value.store_first_codes(out.codes + place, part);
      } else {
        float* to = out.floats + place;
        if (linear.add) value = (whole ? F32::load(to) : F32::load_first(to, part)) + value;
        whole ? value.store(to) : value.store_first(to, part);
      }
    }
  }
}

using Tile = void (*)(const uint8_t* w, const int8_t* x, int64_t x_stride, int64_t steps, Ahead ahead, const int32_t* start,
                      int64_t start_stride, const float* scale, float* y);
struct Tiles {
  Tile of_rows[Dot::rows];
};

template <class Codes, int... i>
constexpr Tiles int8_tiles(std::integer_sequence<int, i...>) {
  return {{&int8_tile<Codes, i + 1>...}};
}

template <class Codes, int... i>
constexpr Tiles int4_tiles(std::integer_sequence<int, i...>) {
  return {{&int4_tile<Codes, i + 1>...}};
}

using Rows = std::make_integer_sequence<int, Dot::rows>;
constexpr Tiles int8_first = int8_tiles<Int8Codes<1>>(Rows{}), int8_second = int8_tiles<Int8Codes<2>>(Rows{});
constexpr Tiles int4_packed = int4_tiles<Int4Codes>(Rows{}), int4_expanded = int4_tiles<ExpandedCodes>(Rows{});

// Multiplies all rows of a block, some at a time and as equally as can be. Together they fetch what lies at `next`; where one
// time is enough, what lies `distance` in front is fetched. `last`: whether results are then whole.
void sweep(const Tiles& tiles, const Block& block, const uint8_t* next, bool last) {
  const int64_t count = ceil_div(block.rows, Dot::rows), size = block.linear->weight.group;
  const int64_t x_stride = block.linear->x_stride;
  Ahead ahead = {block.w + distance, step_bytes};
  if (count > 1) ahead = {next, step_bytes / count + 1};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from = block.rows * i / count, rows = block.rows * (i + 1) / count - from;
    float* y = block.y + from * block.y_stride;
    if (last) claim(block, from, rows);
    for (int64_t g = 0; g < block.groups; ++g) {
      tiles.of_rows[rows - 1](block.w + g * block.w_stride, block.x + from * x_stride + g * size, x_stride, block.steps, ahead,
                              block.start + from * block.start_stride + g, block.start_stride,
                              block.scale + g * block.scale_stride, y);
      ahead.from += (block.steps + (size != 0)) * ahead.step;  // scales follow the steps of a group
    }
    if (last) finish(block, from, rows, y);
  }
}

void int8_panels(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  const LinearWeight& weight = linear.weight;
  const int64_t bytes = panel_bytes(weight.k, 0);
  int32_t start[chunk_rows];
  alignas(64) float y[Dot::rows * panel_columns];
  Block block = {};
  block.linear = &linear;
  block.row = row;
  block.rows = rows;
  block.x = linear.x + row * linear.x_stride;
  block.start = start;
  block.start_stride = 1;
  block.y = y;
  block.groups = 1;
  block.steps = int8_steps(weight.k);
  for (int64_t r = 0; r < rows; ++r) {
    start[r] = Dot::offset ? -Dot::offset * Dot::total(block.x + r * linear.x_stride, weight.k) : 0;
  }
  for (int64_t panel = first; panel < last; ++panel) {
    block.column = panel * panel_columns;
    block.w = weight.packed + panel * bytes;
    sweep(rows > Dot::rows ? int8_second : int8_first, block, block.w + bytes, true);
  }
}

// Codes of some groups as bytes, without their scales.
void expand(const uint8_t* w, int64_t groups, int64_t size, uint8_t* bytes) {
  for (int64_t g = 0; g < groups; ++g, w += step_bytes) {
    for (int64_t step = 0; step < int4_steps(size); ++step, w += step_bytes, bytes += 2 * step_bytes) {
      for (int64_t i = 0; i < step_bytes; i += 4 * Dot::width) {
        Dot::store(bytes + i, Int4Codes::low(w + i));
        Dot::store(bytes + step_bytes + i, Int4Codes::high(w + i));
      }
    }
  }
}

void int4_panels(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  const LinearWeight& weight = linear.weight;
  const int64_t size = weight.group, groups = weight.k / size, group = group_bytes(size), codes = group - step_bytes;
  const int8_t* x = linear.x + row * linear.x_stride;
  int32_t start[linear_max_groups];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      start[r * groups + g] = -8 * Dot::total(x + r * linear.x_stride + g * size, size);
    }
  }
  alignas(64) uint8_t expanded[expanded_bytes];
  alignas(64) float y[chunk_rows * panel_columns];
  const bool expanding = rows >= expanded_rows && 2 * codes <= expanded_bytes;
  const int64_t at_once = expanding ? expanded_bytes / (2 * codes) : groups;
  Block block = {};
  block.linear = &linear;
  block.row = row;
  block.rows = rows;
  block.start_stride = groups;
  block.y = y;
  block.y_stride = panel_columns;
  block.steps = int4_steps(size) * (expanding ? 2 : 1);
  block.w_stride = expanding ? 2 * codes : group;
  block.scale_stride = group / static_cast<int64_t>(sizeof(float));
  for (int64_t panel = first; panel < last; ++panel) {
    block.column = panel * panel_columns;
    for (int64_t i = 0; i < rows * panel_columns; ++i) y[i] = 0.0f;
    for (int64_t g = 0; g < groups; g += at_once) {
      const uint8_t* packed = weight.packed + (panel * groups + g) * group;
      block.groups = groups - g < at_once ? groups - g : at_once;
      block.x = x + g * size;
      block.w = packed;
      block.start = start + g;
      block.scale = reinterpret_cast<const float*>(packed + codes);
      if (expanding) {
        expand(packed, block.groups, size, expanded);
        block.w = expanded;
      }
      sweep(expanding ? int4_expanded : int4_packed, block, packed + block.groups * group, g + block.groups == groups);
    }
  }
}

// Rows of a chunk.
int64_t chunk_of(const LinearWeight& weight) {
  int64_t rows = chunk_bytes / (weight.k ? weight.k : 1);
  if (rows > chunk_rows) rows = chunk_rows;
  const int64_t groups = weight.group ? weight.k / weight.group : 1;
  if (rows * groups > linear_max_groups) rows = linear_max_groups / groups;
  return rows < 1 ? 1 : rows;
}

LinearTasks tasks(const LinearWeight& weight, int64_t rows, int threads) {
  const int64_t panels = panels_of(weight.n), bytes = panel_bytes(weight.k, weight.group);
  if (!rows || !panels) return {0, 1, 1};
  const int64_t row_blocks = ceil_div(rows, chunk_of(weight));
  // Several tasks a thread, so that one that the system puts aside is made up for by the others; but none so small that the
  // first bytes of its weight, which nobody has fetched, cost much beside the others.
  constexpr int64_t a_thread = 8, least_bytes = 128 * 1024;
  const int64_t blocks = threads > 1 ? ceil_div(a_thread * threads, row_blocks) : 1;
  int64_t at_once = ceil_div(panels, blocks);
  if (at_once * bytes < least_bytes) at_once = ceil_div(least_bytes, bytes ? bytes : 1);
  return {row_blocks * ceil_div(panels, at_once), ceil_div(rows, row_blocks), at_once};
}

void run(const Linear& linear, const LinearTasks& tasks, int64_t task) {
  const int64_t row_blocks = ceil_div(linear.rows, tasks.rows), panels = panels_of(linear.weight.n);
  // Neighbouring tasks share panels: the second to come finds them in the cache that the cores have together.
  const int64_t row = task % row_blocks * tasks.rows, first = task / row_blocks * tasks.panels;
  const int64_t end = row + tasks.rows < linear.rows ? row + tasks.rows : linear.rows;
  const int64_t last = first + tasks.panels < panels ? first + tasks.panels : panels;
  const int64_t chunk = chunk_of(linear.weight);
  for (int64_t from = row; from < end; from += chunk) {
    const int64_t rows = end - from < chunk ? end - from : chunk;
    (linear.weight.group ? int4_panels : int8_panels)(linear, from, rows, first, last);
  }
}

}  // namespace

const LinearKernels linear = {panel_columns, &packed_bytes, &pack_int8, &pack_int4, &tasks, &run, &embed_packed, &embed};

}  // namespace ssmquant::SSMQUANT_ISA
