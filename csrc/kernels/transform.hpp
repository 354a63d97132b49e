// The Hadamard transform of one row, for the kernels that end with it.
#pragma once

#include "kernels/pointwise.hpp"

namespace ssmquant::SSMQUANT_ISA {

// Transforms `channels` floats in place; orthonormal.
void transform(float* row, int64_t channels, const Hadamard& hadamard);

}  // namespace ssmquant::SSMQUANT_ISA
