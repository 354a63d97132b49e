#include "kernels/pointwise.hpp"

#include "kernels/kernels.hpp"
#include "python/bindings.hpp"

namespace nb = nanobind;

namespace ssmquant {

namespace {

// x [rows, channels] -> codes [rows, channels], reciprocal [1] or [channels].
void quantize(const Floats& x, const Floats& reciprocal, const CodesOut& codes) {
  const int64_t channels = static_cast<int64_t>(x.shape(1)), rows = static_cast<int64_t>(x.shape(0));
  const Scale scale = scale_of(reciprocal);
  const float* from = x.data();
  int8_t* to = codes.data();
  const int64_t block = 1 + 65536 / (channels + 1);  // rows a task: some ten microseconds
  nb::gil_scoped_release release;
  shared_pool().run((rows + block - 1) / block, [&](int64_t task) {
    const int64_t start = task * block, count = rows - start < block ? rows - start : block;
    kernels().pointwise.quantize(from + start * channels, count, channels, scale, to + start * channels);
  });
}

}  // namespace

void bind_pointwise(nb::module_& m) { m.def("quantize", &quantize, nb::arg("x"), nb::arg("reciprocal"), nb::arg("codes")); }

}  // namespace ssmquant
