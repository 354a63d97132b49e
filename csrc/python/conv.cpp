#include "kernels/conv.hpp"

#include <nanobind/stl/optional.h>

#include <algorithm>

#include "kernels/kernels.hpp"
#include "python/bindings.hpp"

namespace nb = nanobind;

namespace ssmquant {

namespace {

// x [B, taps - 1 + L, C], the inputs before the sequence first; weight [taps, C], int8 where there is a `scale` (x_scale *
// weight_scale) -> out [B, L, C].
void causal_conv1d(const Out& x, const std::optional<Floats>& x_scale, const Out& weight, const std::optional<Floats>& scale,
                   const std::optional<Floats>& bias, const std::optional<Floats>& reciprocal, const Out& out) {
  Conv conv = {};
  conv.taps = static_cast<int64_t>(weight.shape(0));
  conv.channels = static_cast<int64_t>(weight.shape(1));
  const Input taps = input_of(weight, scale, conv.channels), inputs = input_of(x, x_scale, conv.channels);
  conv.codes = taps.codes;
  conv.floats = taps.floats;
  conv.scale = taps.scale;
  conv.bias = bias ? bias->data() : nullptr;
  const Output outputs = output_of(out, reciprocal);
  const int64_t batch = static_cast<int64_t>(x.shape(0)), rows = static_cast<int64_t>(x.shape(1));
  const int64_t tokens = rows - (conv.taps - 1);
  constexpr int64_t part = 64;  // channels a task
  const int64_t parts = (conv.channels + part - 1) / part;
  nb::gil_scoped_release release;
  shared_pool().run(batch * parts, [&](int64_t task) {
    const int64_t row = task / parts, first = task % parts * part, last = std::min(conv.channels, first + part);
    const int64_t from = (row * rows + conv.taps - 1) * conv.channels, to = row * tokens * conv.channels;
    Input sequence = inputs;
    Output result = outputs;
    if (sequence.codes) sequence.codes += from;
    if (sequence.floats) sequence.floats += from;
    if (result.codes) result.codes += to;
    if (result.floats) result.floats += to;
    kernels().conv.run(conv, sequence, tokens, first, last, result);
  });
}

}  // namespace

void bind_conv(nb::module_& m) {
  m.def("causal_conv1d", &causal_conv1d, nb::arg("x"), nb::arg("x_scale").none(), nb::arg("weight"), nb::arg("scale").none(),
        nb::arg("bias").none(), nb::arg("reciprocal").none(), nb::arg("out"));
}

}  // namespace ssmquant
