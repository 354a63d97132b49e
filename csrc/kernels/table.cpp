#include "kernels/table.hpp"

#define SSMQUANT_STRING(name) #name
#define SSMQUANT_NAME(name) SSMQUANT_STRING(name)

namespace ssmquant::SSMQUANT_ISA {

extern const Kernels table;
const Kernels table = {SSMQUANT_NAME(SSMQUANT_ISA), linear, float_linear, pointwise, probe, conv, selective_scan, ssd};

}  // namespace ssmquant::SSMQUANT_ISA
