// Kernels that work on rows of channels: quantisation, norms, gates, the Hadamard transform.
//
// An output of codes is, bit for bit, what `quantize` makes of the same kernel's floats.
#pragma once

#include <cstdint>

#include "kernels/operands.hpp"

namespace ssmquant {

// The orthonormal Hadamard transform of 2^k * m channels (ops/hadamard/matrix.py): butterflies, then a dense base matrix.
struct Hadamard {
  bool wanted;
  int64_t m;          // base_order(channels)
  const float* base;  // matrix(m) transposed, entries 1 and -1, [m, m]; not read for m = 1
};

struct PointwiseKernels {
  // codes[r, c] = round_clamp(x[r, c] * reciprocal[c]); x and codes are rows of `channels`, contiguous.
  void (*quantize)(const float* x, int64_t rows, int64_t channels, Scale reciprocal, int8_t* codes);

  // x = round_clamp(x * reciprocal) * scale, in place: floats become values of codes. x: rows `stride` elements apart.
  void (*round)(float* x, int64_t stride, int64_t rows, int64_t channels, Scale scale, Scale reciprocal);

  // Codes of `bits` bits with a scale a row that is found from the row (numerics.per_token_scale): scale[r], [rows].
  void (*quantize_per_token)(const float* x, int64_t rows, int64_t channels, int bits, int8_t* codes, float* scale);

  // out = x / sqrt(mean(x^2) + eps) * weight. x: rows `stride` elements apart; weight [channels], or null for none. Where
  // `addend` (rows `channels` apart) is not null, x += addend first, in place: the residual stream. out.floats may be x.
  void (*rms_norm)(float* x, int64_t stride, const float* addend, int64_t rows, int64_t channels, const float* weight,
                   float eps, Output out);

  // out = hadamard(y * silu(z)). y: rows of `channels`, contiguous. work: `channels` floats.
  void (*gate)(const float* y, Input z, int64_t rows, int64_t channels, Hadamard hadamard, float* work, Output out);

  // out = hadamard(norm(y * silu(z)) * weight), the mean square over each `group_size` channels. work: `channels` floats.
  void (*gated_rms_norm)(const float* y, Input z, int64_t rows, int64_t channels, const float* weight, float eps,
                         int64_t group_size, Hadamard hadamard, float* work, Output out);

  // Rows of `channels`, contiguous, transformed in place.
  void (*hadamard)(float* x, int64_t rows, int64_t channels, Hadamard hadamard);
};

}  // namespace ssmquant
