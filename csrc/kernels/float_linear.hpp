// The linear layer of float activations: floats times weights of any type, packed as linear.hpp has it. Codes become floats on
// their way: in the registers where few rows meet the weight, else a part of a panel at a time, in the first cache. No float
// copy of a weight is ever in memory.
//
// Each result is one sum, along K in order, of products with the numbers that the reference dequantises (int8 and
// int4_progressive: with the codes, and the scale follows). So a row's results are the same, to the last bit, whatever rows are
// beside it and however the product is cut.
#pragma once

#include <cstdint>

#include "kernels/linear.hpp"

namespace ssmquant {

// One product: y[m, n] = (sum over k of x[m, k] * w[n, k]) * scale[n] + bias[n], float or quantised.
struct FloatLinear {
  LinearWeight weight;
  Scale weight_scale;  // [1] or [N] of int8 and int4_progressive; else not read

  const float* x;  // [rows, K], rows `x_stride` apart
  int64_t rows, x_stride;

  const float* bias;  // [N] or null
  Output out;         // [rows, N]
  bool add;           // floats are added to what `out` holds (the residual)
};

struct FloatLinearKernels {
  // The best cut of a product for so many threads; see LinearTasks.
  LinearTasks (*tasks)(const LinearWeight& weight, int64_t rows, int threads);

  // One task of a product.
  void (*run)(const FloatLinear& linear, const LinearTasks& tasks, int64_t task);
};

}  // namespace ssmquant
