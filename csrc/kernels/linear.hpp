// The linear layer: int8 activations times int8 weights, or times int4 weights with a scale, or an integer step and zero point,
// for each group along K; and rows of an int8 embedding.
//
// A weight is packed once after loading and serves every number of rows. Packed, it is panels of `LinearKernels::panel`
// output columns, each contiguous, so that a token streams through memory once and in order:
//   int8: [panel][K / 4][column][4 bytes along K]
//   int4: [panel][group] of { [size / 8][column][4 bytes: k in the low nibbles, k + 4 in the high ones], factor[column] }
//         where a factor is the scale, a float, or the grid, a byte; of int4_asymmetric, all scales and then all zero points
//   floats: [panel][K][column]
// N is padded to whole panels, K (int4: each group) to whole steps. What a byte holds depends on the instruction set.
//
// A product of floats with any of these is float_linear.hpp's.
//
// Results equal the references of the ops int8_linear, int4_linear and int4_progressive_linear bit for bit.
#pragma once

#include <cstdint>

#include "kernels/operands.hpp"

namespace ssmquant {

// int4_progressive: (code - zero point) * multiplier is an int8 code, so sums are exact over all of K, and the scale is int8's.
// Those behind it are for float activations alone (float_linear.hpp).
enum class WeightType { int8, int4, int4_progressive, int4_asymmetric, bfloat16, float16, float32 };

// A packed weight: N output columns of K inputs. It owns nothing.
struct LinearWeight {
  const uint8_t* packed;  // from one of the functions that pack, aligned to 64 bytes
  WeightType type;
  int64_t n, k;
  int64_t group;  // int4: neighbours along K that share a factor; divides K; of int4_progressive, a multiple of 8; else 0
};

// One product: y[m, n] = (sum over k of x[m, k] * w[n, k] * scales) + bias, float or quantised.
struct Linear {
  LinearWeight weight;
  Scale weight_scale;  // [1] or [N]; int4: not used, the scales are in the packed weight

  // Codes [rows, K] in [-127, 127], rows `x_stride` apart. Up to linear_overread bytes behind the last row are read, whatever
  // they hold.
  const int8_t* x;
  int64_t rows, x_stride;
  Scale x_scale;  // [1] (step 0) or [rows] (step 1)

  const float* bias;  // [N] or null
  Output out;         // [rows, N]
  bool add;           // floats are added to what `out` holds (the residual)
};

constexpr int64_t linear_overread = 64;
constexpr int64_t linear_max_groups = 16384;  // of a row of int4 codes with scales

// How a product is cut: count = (row blocks) * (panel blocks) tasks that may run in any order, on any thread.
struct LinearTasks {
  int64_t count;
  int64_t rows;    // rows a task
  int64_t panels;  // panels a task
};

struct LinearKernels {
  int64_t panel;  // columns a panel

  // Bytes of a packed weight, of which `packed` is not looked at.
  int64_t (*packed_bytes)(const LinearWeight& weight);

  // Pack panels [first, last) of a weight; panels may be packed by several threads. `packed` is the start of the whole weight
  // (packed_bytes long, aligned to 64 bytes).
  //   int8: codes int8 [N, K], `stride` bytes between rows.
  //   int4: codes uint8 [N, K / 2] as in ops/int4_linear/packing.py, scale float [N, K / group].
  //   int4_progressive: the same codes, grid uint8 [N, K / group] as in ops/int4_progressive_linear/reference.py: a multiplier
  //         and a zero point that make int8 codes of all int4 codes.
  void (*pack_int8)(const int8_t* codes, int64_t stride, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed);
  void (*pack_int4)(const uint8_t* codes, const float* scale, int64_t n, int64_t k, int64_t group, int64_t first, int64_t last,
                    uint8_t* packed);
  //   int4_asymmetric: the same codes, scale float and zero_point int8 [N, K / group]: of the codes from -8 to 7.
  //   floats: rows of K; halves, bits of float16, or singles, which must be numbers of the type that they are packed as.
  void (*pack_int4_progressive)(const uint8_t* codes, const uint8_t* grid, int64_t n, int64_t k, int64_t group,
                                int64_t first, int64_t last, uint8_t* packed);
  void (*pack_int4_asymmetric)(const uint8_t* codes, const float* scale, const int8_t* zero_point, int64_t n, int64_t k,
                               int64_t group, int64_t first, int64_t last, uint8_t* packed);
  void (*pack_halves)(const uint16_t* values, int64_t n, int64_t k, int64_t first, int64_t last, uint8_t* packed);
  void (*pack_singles)(const float* values, WeightType type, int64_t n, int64_t k, int64_t first, int64_t last,
                       uint8_t* packed);

  // The best cut of a product for so many threads, from measurements.
  LinearTasks (*tasks)(const LinearWeight& weight, int64_t rows, int threads);

  // One task of a product: pool.run(tasks.count, [&](int64_t task) { kernels().linear.run(linear, tasks, task); }).
  void (*run)(const Linear& linear, const LinearTasks& tasks, int64_t task);

  // out[i, c] = weight[ids[i], c] * scale[ids[i]], out [count, K] contiguous, of a packed weight (an embedding that is also
  // the head is stored once) of int8, int4 (whose scales are in it) or floats (which have none), or of row-major codes
  // int8 [N, K]; or weight[ids[i], c] * scale[ids[i], c / group] of int4 codes uint8 [N, K / 2] with scales float
  // [N, K / group]. ids are in [0, N): the caller has checked them.
  void (*embed_packed)(const LinearWeight& weight, Scale scale, const int64_t* ids, int64_t count, float* out);
  void (*embed)(const int8_t* codes, int64_t k, Scale scale, const int64_t* ids, int64_t count, float* out);
  void (*embed_int4)(const uint8_t* codes, const float* scale, int64_t k, int64_t group, const int64_t* ids, int64_t count,
                     float* out);
};

}  // namespace ssmquant
