// Causal depthwise convolution with SiLU: a sequence or one step of it, over a range of channels.
#pragma once

#include <cstdint>

#include "kernels/operands.hpp"

namespace ssmquant {

// Constants of a layer. The last tap meets the newest token.
struct Conv {
  int64_t channels, taps;
  // [taps, channels] (the checkpoint's [channels, taps] transposed): codes, which need inputs that are codes, or floats.
  const int8_t* codes;
  const float* floats;
  Scale scale;        // with codes: x_scale * weight_scale, the factor of the integer sum
  const float* bias;  // [channels] or null
};

struct ConvKernels {
  // out[t, c] = silu(sum over k of weight[k, c] * x[t - (taps - 1) + k, c] + bias[c]) for c in [first, last).
  //
  // x: rows of `channels`; the taps - 1 rows before it, at the same stride, are the inputs before these tokens (zeros at a
  // sequence's start). Ranges of tokens and of channels may run on several threads; a `first` that is a multiple of 64 keeps
  // them out of each other's cache lines.
  void (*run)(const Conv& conv, Input x, int64_t tokens, int64_t first, int64_t last, Output out);
};

}  // namespace ssmquant
