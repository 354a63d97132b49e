// The table of all kernels of one instruction set, and the one that this process uses.
#pragma once

#include "kernels/pointwise.hpp"

namespace ssmquant {

struct Kernels {
  const char* isa;
  const PointwiseKernels& pointwise;
};

// The best instruction set that the processor has, or the one that the environment variable SSMQUANT_ISA names; chosen at
// the first call. Throws std::invalid_argument for a name that is unknown, not built, or not this processor's.
const Kernels& kernels();

}  // namespace ssmquant
