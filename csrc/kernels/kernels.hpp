// The table of all kernels of one instruction set, and the one that this process uses.
#pragma once

#include "kernels/conv.hpp"
#include "kernels/float_linear.hpp"
#include "kernels/linear.hpp"
#include "kernels/pointwise.hpp"
#include "kernels/probe.hpp"
#include "kernels/selective_scan.hpp"
#include "kernels/ssd.hpp"

namespace ssmquant {

struct Kernels {
  const char* isa;
  const LinearKernels& linear;
  const FloatLinearKernels& float_linear;
  const PointwiseKernels& pointwise;
  const ProbeKernels& probe;
  const ConvKernels& conv;
  const ScanKernels& selective_scan;
  const SsdKernels& ssd;
};

// The best instruction set that the processor has, or the one that the environment variable SSMQUANT_ISA names; chosen at
// the first call. Throws std::invalid_argument for a name that is unknown, not built, or not this processor's.
const Kernels& kernels();

}  // namespace ssmquant
