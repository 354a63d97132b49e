// The Hadamard transform of one row, for the kernels that end with it.
#pragma once

#include "kernels/pointwise.hpp"

namespace ssmquant::SSMQUANT_ISA {

// Transforms `channels` floats in place, orthonormal, and multiplies them by `scale`.
void transform(float* row, int64_t channels, const Hadamard& hadamard, float scale);

}  // namespace ssmquant::SSMQUANT_ISA
