// The Hadamard transform of one row, for the kernels that end with it.
#pragma once

#include "kernels/pointwise.hpp"

namespace ssmquant::SSMQUANT_ISA {

// Writes `scale` times the transform (orthonormal) of `channels` floats as row r of `out`. It works in `row`, which `out` may be.
void transform(float* row, int64_t channels, const Hadamard& hadamard, float scale, const Output& out, int64_t r);

}  // namespace ssmquant::SSMQUANT_ISA
