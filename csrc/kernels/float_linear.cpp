#include "kernels/float_linear.hpp"

#include "kernels/linear_layout.hpp"
#include "kernels/product.hpp"
#include "kernels/table.hpp"
#include "kernels/values.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

constexpr int vectors = Dot::vectors;

// Up to so many rows meet the weight in the registers, as it streams by.
constexpr int few_rows = 4;
// Rows of x that are worked on together: their floats stay in the second cache while panel after panel meets them.
constexpr int64_t chunk_rows = 64, chunk_bytes = 1024 * 1024;
// So much of a panel at a time is made floats, and meets all rows out of the first cache.
constexpr int64_t part_floats = 8192, part_depth = part_floats / panel_columns;
// Bytes between what is multiplied and what is fetched.
constexpr int64_t distance = 4096;

SSMQUANT_INLINE inline void fetch(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// How weights lie in a panel. Of each:
//   depth, bytes        neighbours along K of a step, and its bytes
//   Factors             what the codes of a group share: at(end of its codes, vector)
//   value<k>(w, v, f)   vector v of the k-th weights of a step at w
//   behind              bytes of the factors, which lie behind the codes of a group
// A float type's steps are single weights.
struct NoFactors {
  static NoFactors at(const uint8_t*, int) { return {}; }
};

struct BFloat16 {
  static constexpr int depth = 1;
  static constexpr int64_t bytes = 2 * panel_columns, behind = 0;
  using Factors = NoFactors;
  template <int>
  static F32 value(const uint8_t* w, int v, Factors) {
    return F32::load_bf16(reinterpret_cast<const uint16_t*>(w) + v * F32::width);
  }
};

struct Float16 {
  static constexpr int depth = 1;
  static constexpr int64_t bytes = 2 * panel_columns, behind = 0;
  using Factors = NoFactors;
  template <int>
  static F32 value(const uint8_t* w, int v, Factors) {
    return F32::load_f16(reinterpret_cast<const uint16_t*>(w) + v * F32::width);
  }
};

struct Float32 {
  static constexpr int depth = 1;
  static constexpr int64_t bytes = 4 * panel_columns, behind = 0;
  using Factors = NoFactors;
  template <int>
  static F32 value(const uint8_t* w, int v, Factors) {
    return F32::load(reinterpret_cast<const float*>(w) + v * F32::width);
  }
};

struct Int8 {
  static constexpr int depth = 4;
  static constexpr int64_t bytes = step_bytes, behind = 0;
  using Factors = NoFactors;
  template <int k>
  static F32 value(const uint8_t* w, int v, Factors) {
    return F32::byte_of<k, Dot::offset>(w + v * 4 * F32::width);
  }
};

// A code from 0 to 15 stands for code * factor + offset. The offset is minus the code of zero times the factor, which is exact
// but for a zero point that is no power of two and a factor that is no whole number: then it is rounded once more.
struct Affine {
  F32 factor, offset;
};

template <class Group>
struct Int4 {
  static constexpr int depth = 8;
  static constexpr int64_t bytes = step_bytes, behind = Group::behind;
  using Factors = Group;
  template <int k>
  static F32 value(const uint8_t* w, int v, const Group& group) {
    const F32 code = F32::nibble_of<k % 4 * 8 + k / 4 * 4>(w + v * 4 * F32::width);
    return fma(code, group.affine.factor, group.affine.offset);
  }
};

struct Symmetric {
  static constexpr int64_t behind = factor_bytes<float>;
  Affine affine;
  static Symmetric at(const uint8_t* factors, int v) {
    const F32 scale = F32::load(reinterpret_cast<const float*>(factors) + v * F32::width);
    return {{scale, scale * F32::broadcast(-8.0f)}};
  }
};

struct Asymmetric {
  static constexpr int64_t behind = factor_bytes<float> + factor_bytes<int8_t>;
  Affine affine;
  static Asymmetric at(const uint8_t* factors, int v) {
    const F32 scale = F32::load(reinterpret_cast<const float*>(factors) + v * F32::width);
    const int8_t* points = reinterpret_cast<const int8_t*>(factors + factor_bytes<float>) + v * F32::width;
    return {{scale, (F32::broadcast(-8.0f) - F32::load_i8(points)) * scale}};
  }
};

struct Progressive {
  static constexpr int64_t behind = factor_bytes<uint8_t>;
  Affine affine;
  static Progressive at(const uint8_t* factors, int v) {
    float multiplier[F32::width], zero[F32::width];
    for (int i = 0; i < F32::width; ++i) {
      const uint8_t grid = factors[v * F32::width + i];
      multiplier[i] = static_cast<float>(grid & 15);
      zero[i] = -static_cast<float>(grid >> 4);
    }
    const F32 factor = F32::load(multiplier);
    return {{factor, factor * F32::load(zero)}};
  }
};

// The weights of one group of a panel, from its place `start` along K on.
template <class Weights>
struct Groups {
  int64_t size, bytes;  // of one

  explicit Groups(const LinearWeight& weight)
      : size(weight.group ? weight.group : weight.k),
        bytes(ceil_div(size, Weights::depth) * Weights::bytes + Weights::behind) {}

  const uint8_t* at(const uint8_t* panel, int64_t k) const { return panel + k / size * bytes; }
  const uint8_t* factors(const uint8_t* group) const { return group + bytes - Weights::behind; }
};

// sums += the weights of a step times x.
template <class Weights, int rows, class Factors>
SSMQUANT_INLINE inline void meet(const uint8_t* w, const float* x, int64_t x_stride, const Factors& factors, F32* sums) {
  repeat<Weights::depth>([&](auto k) SSMQUANT_INLINE {
    F32 weight[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weight[v] = Weights::template value<k>(w, v, factors[v]);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const F32 input = F32::broadcast(x[r * x_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r * vectors + v] = add_product(input, weight[v], sums[r * vectors + v]);
    }
  });
}

// y[rows][panel_columns] = x times a panel that comes by once.
template <class Weights, int rows>
void sweep(const LinearWeight& weight, const uint8_t* panel, const float* x, int64_t x_stride, float* y) {
  const Groups<Weights> groups(weight);
  const int64_t left = groups.size % Weights::depth;
  float last[rows * Weights::depth] = {};  // of x, for the last step of a group, where the group ends within it
  F32 sums[rows * vectors];
  for (int i = 0; i < rows * vectors; ++i) sums[i] = F32::zero();
  for (int64_t start = 0; start < weight.k; start += groups.size, panel += groups.bytes, x += groups.size) {
    typename Weights::Factors factors[vectors];
    for (int v = 0; v < vectors; ++v) factors[v] = Weights::Factors::at(groups.factors(panel), v);
    for (int64_t i = 0; i < rows * left; ++i) {
      last[i / left * Weights::depth + i % left] = x[i / left * x_stride + groups.size - left + i % left];
    }
    const uint8_t* w = panel;
    for (int64_t k = 0; k < groups.size; k += Weights::depth, w += Weights::bytes) {
      const bool whole = k + Weights::depth <= groups.size;
      fetch(w + distance, Weights::bytes);
      meet<Weights, rows>(w, whole ? x + k : last, whole ? x_stride : Weights::depth, factors, sums);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows * vectors; ++i) hold(sums[i]);  // or gcc 12 has them in memory in each round
  }
  for (int i = 0; i < rows * vectors; ++i) sums[i].store(y + i * F32::width);
}

// Weights [first, last) along K of a panel as floats, [last - first][panel_columns]. `first` is where a group or a step begins.
template <class Weights>
void expand(const LinearWeight& weight, const uint8_t* panel, int64_t first, int64_t last, float* to) {
  const Groups<Weights> groups(weight);
  while (first < last) {
    const int64_t inside = first % groups.size, group_end = first - inside + groups.size;
    const int64_t end = last < group_end ? last : group_end;
    const uint8_t *group = groups.at(panel, first), *w = group + inside / Weights::depth * Weights::bytes;
    typename Weights::Factors factors[vectors];
    for (int v = 0; v < vectors; ++v) factors[v] = Weights::Factors::at(groups.factors(group), v);
    for (; first < end; first += Weights::depth, w += Weights::bytes, to += Weights::depth * panel_columns) {
      fetch(w + distance, Weights::bytes);
      repeat<Weights::depth>([&](auto k) SSMQUANT_INLINE {
        if (first + k >= end) return;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          Weights::template value<k>(w, v, factors[v]).store(to + k * panel_columns + v * F32::width);
        }
      });
    }
    to += (end - first) * panel_columns;  // a last step that was cut short
    first = end;
  }
}

// Where a part of a panel that begins at `k` ends: at the end of K, of a group, or where the first cache is full.
int64_t part_end(const LinearWeight& weight, int64_t k) {
  const int64_t size = weight.group ? weight.group : weight.k;
  const int64_t whole = size < part_depth ? k + part_depth / size * size : k - k % size + size;
  const int64_t full = size < part_depth ? whole : k + part_depth / 8 * 8;
  const int64_t end = full < whole ? full : whole;
  return end < weight.k ? end : weight.k;
}

// From sums: * scale, + bias, then codes or floats.
void finish(const FloatLinear& linear, int64_t row, int64_t rows, int64_t panel, const float* y) {
  const bool scaled = linear.weight.type == WeightType::int8 || linear.weight.type == WeightType::int4_progressive;
  const int64_t column = panel * panel_columns;
  each_vector(columns_of(linear.weight.n, panel), [&](int64_t place, auto lanes) {
    const int64_t c = column + place;
    const F32 scale = scaled ? at(linear.weight_scale, c, lanes) : F32::zero();
    const F32 bias = linear.bias ? load(linear.bias + c, lanes) : F32::zero();
    for (int64_t r = 0; r < rows; ++r) {
      F32 value = F32::load(y + r * panel_columns + place);
      if (scaled) value = value * scale;
      if (linear.bias) value = value + bias;
      if (linear.add) value = load(linear.out.floats + (row + r) * linear.out.stride + c, lanes) + value;
      emit(value, linear.out, row + r, c, lanes);
    }
  });
}

template <class Weights>
void sweeps(const FloatLinear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  using Sweep = void (*)(const LinearWeight&, const uint8_t*, const float*, int64_t, float*);
  static constexpr Sweep of_rows[few_rows] = {&sweep<Weights, 1>, &sweep<Weights, 2>, &sweep<Weights, 3>, &sweep<Weights, 4>};
  const int64_t bytes = panel_bytes(linear.weight);
  alignas(64) float y[few_rows * panel_columns];
  for (int64_t panel = first; panel < last; ++panel) {
    of_rows[rows - 1](linear.weight, linear.weight.packed + panel * bytes, linear.x + row * linear.x_stride, linear.x_stride, y);
    finish(linear, row, rows, panel, y);
  }
}

template <class Weights>
void panels(const FloatLinear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  if (rows <= few_rows) return sweeps<Weights>(linear, row, rows, first, last);
  const LinearWeight& weight = linear.weight;
  const int64_t bytes = panel_bytes(weight);
  const float* x = linear.x + row * linear.x_stride;
  alignas(64) float expanded[part_floats];
  alignas(64) float y[chunk_rows * panel_columns];
  for (int64_t panel = first; panel < last; ++panel) {
    const uint8_t* packed = weight.packed + panel * bytes;
    for (int64_t i = 0; i < rows * panel_columns; i += F32::width) F32::zero().store(y + i);
    for (int64_t k = 0, end; k < weight.k; k = end) {
      end = part_end(weight, k);
      expand<Weights>(weight, packed, k, end, expanded);
      each_block(rows, vectors, [&](int64_t r, auto rows_of, int64_t column, auto vectors_of) {
        Sums<rows_of.number, vectors_of.number> sums;
        float* to = y + r * panel_columns + column;
        sums.each([&](auto i, auto v, F32& sum) SSMQUANT_INLINE { sum = F32::load(to + i * panel_columns + v * F32::width); });
        sums.add(x + r * linear.x_stride + k, linear.x_stride, expanded + column, panel_columns, end - k,
                 add_product);
        sums.each([&](auto i, auto v, F32& sum) SSMQUANT_INLINE { sum.store(to + i * panel_columns + v * F32::width); });
      });
    }
    finish(linear, row, rows, panel, y);
  }
}

void panels_of_type(const FloatLinear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
  switch (linear.weight.type) {
    case WeightType::int8:
      return panels<Int8>(linear, row, rows, first, last);
    case WeightType::int4:
      return panels<Int4<Symmetric>>(linear, row, rows, first, last);
    case WeightType::int4_progressive:
      return panels<Int4<Progressive>>(linear, row, rows, first, last);
    case WeightType::int4_asymmetric:
      return panels<Int4<Asymmetric>>(linear, row, rows, first, last);
    case WeightType::bfloat16:
      return panels<BFloat16>(linear, row, rows, first, last);
    case WeightType::float16:
      return panels<Float16>(linear, row, rows, first, last);
    case WeightType::float32:
      return panels<Float32>(linear, row, rows, first, last);
  }
}

// Rows of a chunk.
int64_t chunk_of(const LinearWeight& weight) {
  const int64_t rows = weight.k ? chunk_bytes / (weight.k * int64_t{sizeof(float)}) : chunk_rows;
  return rows > chunk_rows ? chunk_rows : rows < kRows ? kRows : rows;
}

LinearTasks tasks(const LinearWeight& weight, int64_t rows, int threads) {
  return cut(weight, rows, threads, chunk_of(weight), few_rows);
}

void run(const FloatLinear& linear, const LinearTasks& tasks, int64_t task) {
  each_chunk(linear.weight, linear.rows, tasks, task, chunk_of(linear.weight),
             [&](int64_t row, int64_t rows, int64_t first, int64_t last) { panels_of_type(linear, row, rows, first, last); });
}

}  // namespace

const FloatLinearKernels float_linear = {&tasks, &run};

}  // namespace ssmquant::SSMQUANT_ISA
