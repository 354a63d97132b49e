// What the kernel sources of one instruction set define; table.cpp puts them together.
#pragma once

#include "kernels/kernels.hpp"

namespace ssmquant::SSMQUANT_ISA {

extern const LinearKernels linear;
extern const FloatLinearKernels float_linear;
extern const PointwiseKernels pointwise;
extern const ProbeKernels probe;
extern const ConvKernels conv;
extern const ScanKernels selective_scan;
extern const SsdKernels ssd;

}  // namespace ssmquant::SSMQUANT_ISA
