#include "kernels/linear.hpp"

#include "kernels/linear_layout.hpp"
#include "kernels/linear_pack.hpp"
#include "kernels/table.hpp"
#include "simd/dot.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

using Sum = Dot::Sum;
constexpr int vectors = Dot::vectors;

// Rows of x that are worked on together: their codes stay in the second cache while panel after panel meets them.
constexpr int64_t chunk_rows = 256, chunk_bytes = 512 * 1024;
// More rows share what is expanded, at the price of a fuller cache.
constexpr int64_t expanding_chunk_bytes = 2 * chunk_bytes;
// Of a panel, so many steps at a time meet all rows, out of the first cache. Of int4, a group at a time, and where there is
// more than one block of rows, made bytes first; of int4_progressive, as many steps as are int8 codes in so many bytes.
constexpr int64_t part_steps = 32768 / step_bytes;
constexpr int64_t expanded_bytes = 32768;
// Bytes between what is multiplied and what is fetched, where one sweep over the weight is all.
constexpr int64_t distance = 4096;
// Of a group with a grid, so many codes along K meet its multiplier at once; as many as a Block has room for.
constexpr int block_codes = 16;

// What is fetched while something is multiplied, `step` bytes with each step.
struct Ahead {
  const uint8_t* from;
  int64_t step;
};

// Four codes of x in each row meet the four bytes of each column at `w`, as `load`, which is told the vector, reads and `add`
// multiplies them.
template <int rows, class Load, class Add>
SSMQUANT_INLINE inline void meet(const Load& load, const Add& add, const uint8_t* w, const int8_t* x, int64_t x_stride,
                                 Sum* sums) {
  Dot::Weight weight[vectors];
  repeat<vectors>([&](auto v) SSMQUANT_INLINE { weight[v] = load(w + v * 4 * Dot::width, v); });
  repeat<rows>([&](auto r) SSMQUANT_INLINE {
    const Dot::Input input = Dot::broadcast(x + r * x_stride);
    repeat<vectors>([&](auto v) SSMQUANT_INLINE {
      sums[r * vectors + v] = add(sums[r * vectors + v], weight[v], input);
    });
  });
}

SSMQUANT_INLINE inline Dot::Weight as_stored(const uint8_t* w, int) { return Dot::load(w); }

// How the bytes of a step meet `depth` codes of x, and into which cache the next are fetched: the first where they are wanted
// within some hundred cycles.
template <int cache>
struct Int8Codes {
  static constexpr int depth = 4, locality = 4 - cache;

  template <int rows>
  SSMQUANT_INLINE static void step(const uint8_t* w, const int8_t* x, int64_t x_stride, Sum* sums) {
    meet<rows>(as_stored, Dot::add, w, x, x_stride, sums);
  }
};

struct ExpandedCodes {
  static constexpr int depth = 4, locality = 2;

  template <int rows>
  SSMQUANT_INLINE static void step(const uint8_t* w, const int8_t* x, int64_t x_stride, Sum* sums) {
    meet<rows>(as_stored, Dot::add_small, w, x, x_stride, sums);
  }
};

struct Int4Codes {
  static constexpr int depth = 8, locality = 2;  // faster than the first cache

  static Dot::Weight low(const uint8_t* w, int = 0) { return Dot::low(Dot::load(w)); }
  static Dot::Weight high(const uint8_t* w, int = 0) { return Dot::high(Dot::load(w)); }

  // One half after the other: both at once want more registers than there are.
  template <int rows>
  SSMQUANT_INLINE static void step(const uint8_t* w, const int8_t* x, int64_t x_stride, Sum* sums) {
    meet<rows>(low, Dot::add_small, w, x, x_stride, sums);
    meet<rows>(high, Dot::add_small, w, x + 4, x_stride, sums);
  }
};

template <class Codes, int64_t bytes = step_bytes>
SSMQUANT_INLINE inline void fetch(const uint8_t* p) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, Codes::locality);
}

// sums[row][vector] += the products of an even number of steps, by products of two rows with two columns.
template <class D, class Codes, int rows>
SSMQUANT_INLINE inline void multiply_pairs(const uint8_t* w, const int8_t* x, int64_t x_stride, int64_t steps, Ahead& ahead,
                                           Sum* sums) {
  const auto turn = [&]() SSMQUANT_INLINE {
    repeat<rows / 2>([&](auto p) SSMQUANT_INLINE {
      repeat<vectors>([&](auto v) SSMQUANT_INLINE { D::turn(sums[2 * p * vectors + v], sums[(2 * p + 1) * vectors + v]); });
    });
  };
  turn();
  for (int64_t step = 0; step < steps; step += 2, w += 2 * step_bytes, x += 2 * Codes::depth) {
    repeat<2>([&](auto) SSMQUANT_INLINE {
      fetch<Codes>(ahead.from);
      ahead.from += ahead.step;
    });
    typename D::Input both[rows / 2];
    repeat<rows / 2>([&](auto p) SSMQUANT_INLINE {
      both[p] = D::two_rows(x + 2 * p * x_stride, x + (2 * p + 1) * x_stride);
    });
    repeat<vectors>([&](auto v) SSMQUANT_INLINE {
      const uint8_t* const at = w + v * 4 * D::width;
      const auto weight = D::pair(D::load(at), D::load(at + step_bytes));
      repeat<rows / 2>([&](auto p) SSMQUANT_INLINE {
        D::add_pair(sums[2 * p * vectors + v], sums[(2 * p + 1) * vectors + v], weight, both[p]);
      });
    });
    if constexpr (rows % 2) {
      const int8_t* const last = x + (rows - 1) * x_stride;
      meet<1>(as_stored, D::add, w, last, x_stride, sums + (rows - 1) * vectors);
      meet<1>(as_stored, D::add, w + step_bytes, last + 4, x_stride, sums + (rows - 1) * vectors);
    }
  }
  turn();
}

// Of a sweep whose instructions take a good part of the time that its bytes need: far away into the second cache, and from there
// into the first, so that no instruction waits while others could ask for more.
template <int64_t bytes = step_bytes>
SSMQUANT_INLINE inline void fetch_twice(const uint8_t* w) {
  fetch<Int4Codes, bytes>(w + distance);
  fetch<Int8Codes<1>, bytes>(w + distance / 2);
}

// sums[row][vector] += the products of `steps` steps. With few rows, neighbouring steps go to sums of their own, because one
// product must not wait for another.
template <class Codes, int rows>
SSMQUANT_INLINE inline void multiply(const uint8_t* w, const int8_t* x, int64_t x_stride, int64_t steps, Ahead ahead,
                                     Sum (&sums)[rows * vectors]) {
  constexpr int tile = rows * vectors, most = Dot::rows * vectors < 16 ? Dot::rows * vectors : 16;
  constexpr int chains = 4 * tile <= most ? 4 : 2 * tile <= most ? 2 : 1;
  Sum parts[chains * tile];
  repeat<tile>([&](auto i) SSMQUANT_INLINE { parts[i] = sums[i]; });
  repeat<(chains - 1) * tile>([&](auto i) SSMQUANT_INLINE { parts[tile + i] = Dot::all(0); });
  int64_t left = steps;
  if constexpr (Dot::pairs && rows > 1 && Codes::depth == 4) {
    const int64_t even = left / 2 * 2;
    multiply_pairs<Dot, Codes, rows>(w, x, x_stride, even, ahead, parts);
    w += even * step_bytes;
    x += even * Codes::depth;
    left -= even;
  }
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

// Some rows of x against a part of a panel. Results up to here are [rows][panel_columns]: sums, or floats of int4.
struct Tile {
  const uint8_t* w;
  const int8_t* x;
  int64_t x_stride, steps;
  Ahead ahead;
  // Of each row: minus what the offset in the codes of the weight brings in. Null: the sums go on from `sums`.
  const int32_t* start;
  int64_t start_stride;
  int32_t* sums;
  // int4
  const float* scale;
  float* y;
};

// sums = start or sums + products.
template <class Codes, int rows>
__attribute__((noinline)) void int8_tile(const Tile& tile) {
  int32_t* to = tile.sums;
  Sum sums[rows * vectors];
  if (tile.start) {
    repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { sums[i] = Dot::all(tile.start[i / vectors * tile.start_stride]); });
  } else {
    repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { sums[i] = Dot::load_sum(to + i * Dot::width); });
  }
  multiply<Codes, rows>(tile.w, tile.x, tile.x_stride, tile.steps, tile.ahead, sums);
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { Dot::store_sum(to + i * Dot::width, sums[i]); });
}

// y = y + the sums of a group * its scales.
template <class Codes, int rows>
__attribute__((noinline)) void int4_tile(const Tile& tile) {
  const float* scale = tile.scale;
  float* y = tile.y;
  Sum sums[rows * vectors];
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { sums[i] = Dot::all(tile.start[i / vectors * tile.start_stride]); });
  multiply<Codes, rows>(tile.w, tile.x, tile.x_stride, tile.steps, tile.ahead, sums);
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE {
    float* total = y + i * Dot::width;
    (F32::load(total) + Dot::to_float(sums[i]) * F32::load(scale + i % vectors * Dot::width)).store(total);
  });
}

// y = the sums of all groups * their scales, of a panel that comes by once: nothing is in memory between two groups.
template <int rows>
void int4_sweep(const LinearWeight& weight, const uint8_t* w, const int8_t* x, int64_t x_stride, float* y) {
  const int64_t size = weight.group, steps = int4_steps(size);
  F32 total[rows * vectors];
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { total[i] = F32::zero(); });
  for (int64_t at = 0; at < weight.k; at += size) {
    Sum low[rows * vectors], high[rows * vectors];
    repeat<rows>([&](auto r) SSMQUANT_INLINE {
      const Sum start = Dot::all(-8 * Dot::total(x + r * x_stride + at, size));
      repeat<vectors>([&](auto v) SSMQUANT_INLINE {
        low[r * vectors + v] = start;
        high[r * vectors + v] = Dot::all(0);
      });
    });
    const int8_t* codes = x + at;
    for (int64_t step = 0; step < steps; ++step, w += step_bytes, codes += Int4Codes::depth) {
      fetch_twice(w);
      meet<rows>(Int4Codes::low, Dot::add_small, w, codes, x_stride, low);
      meet<rows>(Int4Codes::high, Dot::add_small, w, codes + 4, x_stride, high);
    }
    fetch_twice<factor_bytes<float>>(w);
    repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE {
      Dot::hold(low[i]);
      Dot::hold(high[i]);
      const F32 scale = F32::load(reinterpret_cast<const float*>(w) + i % vectors * Dot::width);
      total[i] = total[i] + Dot::to_float(Dot::join(low[i], high[i])) * scale;
    });
    w += factor_bytes<float>;
  }
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { total[i].store(y + i * Dot::width); });
}

// Channels [column, column + n) of values with a step, n <= F32::width.
SSMQUANT_INLINE inline F32 channels(const float* values, int64_t step, int64_t column, int64_t n) {
  if (!step) return F32::broadcast(values[0]);
  return n == F32::width ? F32::load(values + column) : F32::load_first(values + column, static_cast<int>(n));
}

// Fetches the places of results in order to write them: they arrive while the rows are multiplied.
void claim(const Linear& linear, int64_t row, int64_t rows, int64_t column) {
  const Output& out = linear.out;
  for (int64_t r = row; r < row + rows; ++r) {
    const int64_t at = r * out.stride + column;
    if (out.codes) {
      __builtin_prefetch(out.codes + at, 1);
      continue;
    }
    for (int64_t i = 0; i < panel_columns; i += 64 / sizeof(float)) __builtin_prefetch(out.floats + at + i, 1);
  }
}

// From sums, or y of int4: * scale, + bias, then codes or floats. Every product and sum is rounded apart, as in the reference.
void finish(const Linear& linear, int64_t row, int64_t rows, int64_t column, const int32_t* sums, const float* y) {
  // In registers: as far as the compiler knows, codes may be written over anything else.
  const Output out = linear.out;
  const bool integer = linear.weight.type != WeightType::int4, biased = linear.bias, add = linear.add;
  const float* const x_scales = linear.x_scale.values + row * linear.x_scale.step;
  const int64_t x_step = linear.x_scale.step;
  for (int v = 0; v < vectors; ++v) {
    const int64_t at = column + v * Dot::width;
    const int64_t n = linear.weight.n - at < Dot::width ? linear.weight.n - at : Dot::width;
    if (n <= 0) return;
    const bool whole = n == Dot::width;
    const int part = static_cast<int>(n);
    const F32 scale = integer ? channels(linear.weight_scale.values, linear.weight_scale.step, at, n) : F32::zero();
    const F32 bias = biased ? channels(linear.bias, 1, at, n) : F32::zero();
    const F32 factor = out.codes ? channels(out.reciprocal.values, out.reciprocal.step, at, n) : F32::zero();
    int64_t from = v * Dot::width, place = row * out.stride + at;
    for (int64_t r = 0; r < rows; ++r, from += panel_columns, place += out.stride) {
      const F32 x_scale = F32::broadcast(x_scales[r * x_step]);
      F32 value = integer ? Dot::to_float(Dot::load_sum(sums + from)) * (x_scale * scale) : F32::load(y + from) * x_scale;
      if (biased) value = value + bias;
      if (out.codes) {
        value = value * factor;
        whole ? value.store_codes(out.codes + place) : value.store_first_codes(out.codes + place, part);
      } else {
        float* to = out.floats + place;
        if (add) value = (whole ? F32::load(to) : F32::load_first(to, part)) + value;
        whole ? value.store(to) : value.store_first(to, part);
      }
    }
  }
}

// sums = the products of a panel of groups with grids that comes by once. Making int8 codes of the nibbles would cost more than
// their products: they meet x themselves, a block of `steps` steps at a time, and then the multiplier. less: minus the sum of
// each block of x.
template <int rows, int steps>
void grid_sweep(const LinearWeight& weight, const uint8_t* w, const int8_t* x, int64_t x_stride, const int32_t* less,
                [[maybe_unused]] int64_t less_stride, int32_t* sums) {
  const int64_t groups = weight.k / weight.group, blocks = int4_steps(weight.group) / steps;
  Sum total[rows * vectors];
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { total[i] = Dot::all(0); });
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* const grids = w + blocks * steps * step_bytes;
    for (; w < grids; w += steps * step_bytes, x += steps * Int4Codes::depth, ++less) {
      repeat<vectors>([&](auto v) SSMQUANT_INLINE {
        fetch_twice<steps * step_bytes / vectors>(w + v * steps * step_bytes / vectors);
        const Dot::Grid grid = Dot::grid(grids + v * Dot::width);
        Dot::Weight codes[2 * steps];
        repeat<steps>([&](auto s) SSMQUANT_INLINE {
          const uint8_t* at = w + s * step_bytes + v * 4 * Dot::width;
          codes[2 * s] = Int4Codes::low(at);
          codes[2 * s + 1] = Int4Codes::high(at);
        });
        repeat<rows>([&](auto r) SSMQUANT_INLINE {
          Dot::Block block = Dot::begin(grid, less[r * less_stride]);
          repeat<2 * steps>([&](auto i) SSMQUANT_INLINE {
            block = Dot::add_to_block(block, codes[i], Dot::broadcast(x + r * x_stride + 4 * i));
          });
          total[r * vectors + v] = Dot::scaled(total[r * vectors + v], block, grid);
        });
      });
    }
    fetch_twice<factor_bytes<uint8_t>>(w);
    w += factor_bytes<uint8_t>;
  }
  repeat<rows * vectors>([&](auto i) SSMQUANT_INLINE { Dot::store_sum(sums + i * Dot::width, total[i]); });
}

struct Tiles {
  void (*of_rows[Dot::rows])(const Tile&);
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

struct GridSweeps {
  void (*of_rows[Dot::rows])(const LinearWeight&, const uint8_t*, const int8_t*, int64_t, const int32_t*, int64_t, int32_t*);
};

template <int steps, int... i>
constexpr GridSweeps grid_sweeps_of(std::integer_sequence<int, i...>) {
  return {{&grid_sweep<i + 1, steps>...}};
}

constexpr GridSweeps grid_sweeps_by_step = grid_sweeps_of<1>(Rows{});
constexpr GridSweeps grid_sweeps_by_block = grid_sweeps_of<block_codes / Int4Codes::depth>(Rows{});

// Rows [from, from + rows) of a chunk in blocks as equal as can be, at most Dot::rows each: body(from, rows).
template <class Body>
void each_block(int64_t rows, const Body& body) {
  const int64_t count = ceil_div(rows, Dot::rows), least = rows / count;
  int64_t larger = rows - count * least;  // blocks with a row more
  for (int64_t from = 0, size; from < rows; from += size) body(from, size = larger-- > 0 ? least + 1 : least);
}

// What to fetch while `rows` rows meet `steps` steps, which `bytes` bytes of the weight at `w` are read for. One block of rows
// comes by once and fetches what lies `distance` in front; several share what lies behind these bytes.
Ahead ahead_of(const uint8_t* w, int64_t bytes, int64_t rows, int64_t steps) {
  const int64_t count = ceil_div(rows, Dot::rows);
  if (count == 1) return {w + distance, step_bytes};
  return {w + bytes, bytes / (count * steps) + 1};
}

// Codes that are groups with grids, taken as int8 codes. Steps are those of int8; a part begins and ends with a byte of
// two nibbles, so at an even one.
struct Expansion {
  static constexpr int64_t steps = expanded_bytes / step_bytes;

  // Where the codes of a step are in a panel.
  static int64_t place(const LinearWeight& weight, int64_t step) {
    const int64_t of_group = weight.group / 4;
    return step / of_group * group_bytes<uint8_t>(weight.group) + step % of_group / 2 * step_bytes;
  }

  // The bytes of steps [step, end) of a panel.
  static void run(const LinearWeight& weight, const uint8_t* panel, int64_t step, int64_t end, uint8_t* bytes) {
    const int64_t of_group = weight.group / 4;
    while (step < end) {
      const int64_t group_end = step - step % of_group + of_group, stop = end < group_end ? end : group_end;
      const uint8_t *w = panel + place(weight, step), *grids = panel + place(weight, group_end) - factor_bytes<uint8_t>;
      Dot::Affine affine[vectors];
      repeat<vectors>([&](auto v) SSMQUANT_INLINE { affine[v] = Dot::affine(grids + v * Dot::width); });
      for (; step < stop; step += 2, w += step_bytes, bytes += 2 * step_bytes) {
        repeat<vectors>([&](auto v) SSMQUANT_INLINE {
          constexpr int64_t i = v * 4 * Dot::width;
          Dot::store(bytes + i, Dot::expand(Int4Codes::low(w + i), affine[v]));
          Dot::store(bytes + step_bytes + i, Dot::expand(Int4Codes::high(w + i), affine[v]));
        });
      }
    }
  }
};

// Minus what the offset in int8 codes of the weight brings into the sums of rows.
void find_starts(const Linear& linear, int64_t row, int64_t rows, int32_t* start) {
  for (int64_t r = 0; r < rows; ++r) {
    start[r] = Dot::offset ? -Dot::offset * Dot::total(linear.x + (row + r) * linear.x_stride, linear.weight.k) : 0;
  }
}

// Codes along K that a sweep takes at a time.
int64_t block_of(const LinearWeight& weight) { return weight.group % block_codes ? Int4Codes::depth : block_codes; }

// less[i] = minus the sum of the `size` codes of block i of a row.
template <int size>
void find_less(const int8_t* x, int64_t blocks, int32_t* less) {
  constexpr int64_t at_once = 64, fours = size / 4;
  int32_t sums[at_once * fours];
  for (; blocks > 0; blocks -= at_once, x += at_once * size, less += at_once) {
    const int64_t count = blocks < at_once ? blocks : at_once;
    for (int64_t i = 0; i < count * fours; i += Dot::width) Dot::store_sum(sums + i, Dot::fours(x + 4 * i));
    for (int64_t i = 0; i < count; ++i) {
      int32_t sum = 0;
      for (int64_t four = 0; four < fours; ++four) sum += sums[i * fours + four];
      less[i] = -sum;
    }
  }
}

void grid_sweeps(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  const LinearWeight& weight = linear.weight;
  const int64_t bytes = panel_bytes(weight), size = block_of(weight), blocks = weight.k / size;
  const int8_t* x = linear.x + row * linear.x_stride;
  int32_t less[linear_max_groups];
  const auto find = size == block_codes ? &find_less<block_codes> : &find_less<Int4Codes::depth>;
  for (int64_t r = 0; r < rows; ++r) find(x + r * linear.x_stride, blocks, less + r * blocks);
  const auto sweep = (size == block_codes ? grid_sweeps_by_block : grid_sweeps_by_step).of_rows[rows - 1];
  alignas(64) int32_t sums[Dot::rows * panel_columns];
  for (int64_t panel = first; panel < last; ++panel) {
    sweep(weight, weight.packed + panel * bytes, x, linear.x_stride, less, blocks, sums);
    finish(linear, row, rows, panel * panel_columns, sums, nullptr);
  }
}

// int8 codes, as they lie there or expanded.
void integer_panels(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  const LinearWeight& weight = linear.weight;
  const bool expanding = weight.type == WeightType::int4_progressive;
  const int64_t bytes = panel_bytes(weight), steps = int8_steps(weight.k);
  const int64_t at_once = expanding ? Expansion::steps : rows > Dot::rows ? part_steps : steps;
  const int8_t* x = linear.x + row * linear.x_stride;
  int32_t start[chunk_rows];
  find_starts(linear, row, rows, start);
  alignas(64) uint8_t expanded[expanded_bytes];
  alignas(64) int32_t sums[chunk_rows * panel_columns];
  const Tiles& tiles = rows > Dot::rows ? int8_second : int8_first;
  Tile tile = {};
  tile.x_stride = linear.x_stride;
  tile.start_stride = 1;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t column = panel * panel_columns;
    const uint8_t* codes = weight.packed + panel * bytes;
    for (int64_t step = 0; step < steps; step += at_once) {
      tile.steps = steps - step < at_once ? steps - step : at_once;
      if (expanding) {
        Expansion::run(weight, codes, step, step + tile.steps, expanded);
        tile.w = expanded;
        const int64_t next = Expansion::place(weight, step + tile.steps);
        tile.ahead = ahead_of(codes + Expansion::place(weight, step), next - Expansion::place(weight, step), rows, tile.steps);
      } else {
        tile.w = codes + step * step_bytes;
        tile.ahead = ahead_of(tile.w, tile.steps * step_bytes, rows, tile.steps);
      }
      const bool whole = step + tile.steps == steps;
      each_block(rows, [&](int64_t from, int64_t count) {
        tile.x = x + from * linear.x_stride + step * Int8Codes<1>::depth;
        tile.start = step ? nullptr : start + from;
        tile.sums = sums + from * panel_columns;
        if (whole) claim(linear, row + from, count, column);
        tiles.of_rows[count - 1](tile);
        tile.ahead.from += tile.steps * tile.ahead.step;
        if (whole) finish(linear, row + from, count, column, tile.sums, nullptr);
      });
    }
  }
}

// The codes of a group as bytes.
void expand(const uint8_t* w, int64_t steps, uint8_t* bytes) {
  for (int64_t step = 0; step < steps; ++step, w += step_bytes, bytes += 2 * step_bytes) {
    for (int64_t i = 0; i < step_bytes; i += 4 * Dot::width) {
      Dot::store(bytes + i, Int4Codes::low(w + i));
      Dot::store(bytes + step_bytes + i, Int4Codes::high(w + i));
    }
  }
}

// One or two rows.
void int4_sweeps(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  const LinearWeight& weight = linear.weight;
  const int64_t bytes = panel_bytes(weight);
  const int8_t* x = linear.x + row * linear.x_stride;
  alignas(64) float y[2 * panel_columns];
  for (int64_t panel = first; panel < last; ++panel) {
    const auto sweep = rows == 1 ? &int4_sweep<1> : &int4_sweep<2>;
    sweep(weight, weight.packed + panel * bytes, x, linear.x_stride, y);
    finish(linear, row, rows, panel * panel_columns, nullptr, y);
  }
}

void int4_panels(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  if (rows <= 2) return int4_sweeps(linear, row, rows, first, last);
  const LinearWeight& weight = linear.weight;
  const int64_t size = weight.group, groups = weight.k / size, bytes = group_bytes<float>(size), steps = int4_steps(size);
  const int8_t* x = linear.x + row * linear.x_stride;
  int32_t start[linear_max_groups];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      start[r * groups + g] = -8 * Dot::total(x + r * linear.x_stride + g * size, size);
    }
  }
  alignas(64) uint8_t expanded[expanded_bytes];
  alignas(64) float y[chunk_rows * panel_columns];
  const bool expanding = rows > Dot::rows && 2 * steps * step_bytes <= expanded_bytes;
  const Tiles& tiles = expanding ? int4_expanded : int4_packed;
  Tile tile = {};
  tile.x_stride = linear.x_stride;
  tile.steps = expanding ? 2 * steps : steps;
  tile.start_stride = groups;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t column = panel * panel_columns;
    for (int64_t i = 0; i < rows * panel_columns; ++i) y[i] = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* packed = weight.packed + (panel * groups + g) * bytes;
      tile.w = packed;
      if (expanding) {
        expand(packed, steps, expanded);
        tile.w = expanded;
      }
      tile.scale = reinterpret_cast<const float*>(packed + steps * step_bytes);
      tile.ahead = ahead_of(packed, bytes, rows, tile.steps);
      each_block(rows, [&](int64_t from, int64_t count) {
        tile.x = x + from * linear.x_stride + g * size;
        tile.start = start + from * groups + g;
        tile.y = y + from * panel_columns;
        if (g + 1 == groups) claim(linear, row + from, count, column);
        tiles.of_rows[count - 1](tile);
        tile.ahead.from += tile.steps * tile.ahead.step;
        if (g + 1 == groups) finish(linear, row + from, count, column, nullptr, tile.y);
      });
      fetch<Int4Codes>(tile.ahead.from);  // the scales, which follow the codes
    }
  }
}

void int4_progressive_panels(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  const bool sweeps = rows <= Dot::rows && rows * (linear.weight.k / block_of(linear.weight)) <= linear_max_groups;
  (sweeps ? grid_sweeps : integer_panels)(linear, row, rows, first, last);
}

void panels_of_type(const Linear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  switch (linear.weight.type) {
    case WeightType::int8:
      return integer_panels(linear, row, rows, first, last);
    case WeightType::int4:
      return int4_panels(linear, row, rows, first, last);
    case WeightType::int4_progressive:
      return int4_progressive_panels(linear, row, rows, first, last);
    default:
      return;  // for float activations alone
  }
}

// Rows of a chunk.
int64_t chunk_of(const LinearWeight& weight) {
  const int64_t bytes = weight.type == WeightType::int4_progressive ? expanding_chunk_bytes : chunk_bytes;
  int64_t rows = bytes / (weight.k ? weight.k : 1);
  if (rows > chunk_rows) rows = chunk_rows;
  const int64_t groups = weight.type == WeightType::int4 ? weight.k / weight.group : 1;
  if (rows * groups > linear_max_groups) rows = linear_max_groups / groups;
  return rows < 1 ? 1 : rows;
}

LinearTasks tasks(const LinearWeight& weight, int64_t rows, int threads) {
  return cut(weight, rows, threads, chunk_of(weight), Dot::rows);
}

void run(const Linear& linear, const LinearTasks& tasks, int64_t task) {
  each_chunk(linear.weight, linear.rows, tasks, task, chunk_of(linear.weight),
             [&](int64_t row, int64_t rows, int64_t first, int64_t last) { panels_of_type(linear, row, rows, first, last); });
}

}  // namespace

const LinearKernels linear = {panel_columns, &packed_bytes, &pack_int8, &pack_int4, &pack_int4_progressive, &pack_int4_asymmetric,
                              &pack_halves, &pack_singles, &tasks, &run, &embed_packed, &embed, &embed_int4};

}  // namespace ssmquant::SSMQUANT_ISA
