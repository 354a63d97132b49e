// The Python extension `ssmquant._native`. Each bind_* function is in a source of its own beside this one.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "kernels/kernels.hpp"
#include "python/bindings.hpp"

namespace nb = nanobind;

NB_MODULE(_native, m) {
  m.doc() = "C++ kernels and CPU engine of ssmquant";
  m.def("isa", [] { return std::string(ssmquant::kernels().isa); }, "Instruction set that the kernels use.");
  ssmquant::bind_conv(m);
  ssmquant::bind_engine(m);
  ssmquant::bind_linear(m);
  ssmquant::bind_pointwise(m);
  ssmquant::bind_probe(m);
  ssmquant::bind_scan(m);
}
