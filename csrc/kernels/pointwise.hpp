// Kernels that work on rows of channels: quantisation, norms, gates, the Hadamard transform.
#pragma once

#include <cstdint>

namespace ssmquant {

// A static scale for one tensor or one a channel: `step` is 0 or 1, so that channel c has values[c * step].
struct Scale {
  const float* values;
  int64_t step;
};

struct PointwiseKernels {
  // codes[r, c] = round_clamp(x[r, c] * reciprocal[c]); x and codes are rows of `channels`, contiguous.
  void (*quantize)(const float* x, int64_t rows, int64_t channels, Scale reciprocal, int8_t* codes);
};

}  // namespace ssmquant
