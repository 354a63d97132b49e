// What the kernel sources of one instruction set define; table.cpp puts them together.
#pragma once

#include "kernels/kernels.hpp"

namespace ssmquant::SSMQUANT_ISA {

extern const PointwiseKernels pointwise;

}  // namespace ssmquant::SSMQUANT_ISA
