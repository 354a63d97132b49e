#include "kernels/pointwise.hpp"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <vector>

#include "kernels/kernels.hpp"
#include "python/bindings.hpp"

namespace nb = nanobind;

namespace ssmquant {

namespace {

// Cuts rows into tasks of some ten microseconds: body(task, first row, rows).
class Rows {
 public:
  Rows(int64_t rows, int64_t channels) : rows_(rows), block_(1 + 65536 / (channels + 1)) {}

  int64_t tasks() const { return (rows_ + block_ - 1) / block_; }

  template <class Body>
  void run(const Body& body) const {
    nb::gil_scoped_release release;
    shared_pool().run(tasks(), [&](int64_t task) {
      const int64_t first = task * block_;
      body(task, first, std::min(block_, rows_ - first));
    });
  }

 private:
  int64_t rows_, block_;
};

Input from(Input input, int64_t row) {
  if (input.codes) input.codes += row * input.stride;
  if (input.floats) input.floats += row * input.stride;
  return input;
}

Output from(Output output, int64_t row) {
  if (output.codes) output.codes += row * output.stride;
  if (output.floats) output.floats += row * output.stride;
  return output;
}

// The transposed base matrix [m, m]; none for no transform.
Hadamard hadamard_of(const std::optional<Floats>& base) {
  if (!base) return {false, 1, nullptr};
  return {true, static_cast<int64_t>(base->shape(0)), base->data()};
}

// x [rows, channels] -> codes [rows, channels], reciprocal [1] or [channels].
void quantize(const Floats& x, const Floats& reciprocal, const CodesOut& codes) {
  const int64_t channels = static_cast<int64_t>(x.shape(1));
  const Scale scale = scale_of(reciprocal);
  Rows(static_cast<int64_t>(x.shape(0)), channels)
      .run([&, x = x.data(), codes = codes.data()](int64_t, int64_t first, int64_t rows) {
        kernels().pointwise.quantize(x + first * channels, rows, channels, scale, codes + first * channels);
      });
}

// x [rows, channels] -> codes [rows, channels], scale [rows].
void quantize_per_token(const Floats& x, int bits, const CodesOut& codes, const FloatsOut& scale) {
  const int64_t channels = static_cast<int64_t>(x.shape(1));
  Rows(static_cast<int64_t>(x.shape(0)), channels)
      .run([&, x = x.data(), codes = codes.data(), scale = scale.data()](int64_t, int64_t first, int64_t rows) {
        kernels().pointwise.quantize_per_token(x + first * channels, rows, channels, bits, codes + first * channels,
                                               scale + first);
      });
}

// x [rows, channels], weight [channels] -> out.
void rms_norm(const Floats& x, const Floats& weight, float eps, const std::optional<Floats>& reciprocal, const Out& out) {
  const int64_t channels = static_cast<int64_t>(x.shape(1));
  const Output to = output_of(out, reciprocal);
  float* data = const_cast<float*>(x.data());  // written only with an addend
  Rows(static_cast<int64_t>(x.shape(0)), channels).run([&, weight = weight.data()](int64_t, int64_t first, int64_t rows) {
    kernels().pointwise.rms_norm(data + first * channels, channels, nullptr, rows, channels, weight, eps, from(to, first));
  });
}

// y, z [rows, channels] -> out; base: of the Hadamard transform.
void gate(const Floats& y, const Out& z, const std::optional<Floats>& z_scale, const std::optional<Floats>& base,
          const std::optional<Floats>& reciprocal, const Out& out) {
  const int64_t channels = static_cast<int64_t>(y.shape(1));
  const Rows rows(static_cast<int64_t>(y.shape(0)), channels);
  const Input gates = input_of(z, z_scale, channels);
  const Output to = output_of(out, reciprocal);
  const Hadamard hadamard = hadamard_of(base);
  std::vector<float> work(static_cast<size_t>(rows.tasks() * channels));
  rows.run([&, y = y.data()](int64_t task, int64_t first, int64_t count) {
    kernels().pointwise.gate(y + first * channels, from(gates, first), count, channels, hadamard,
                             work.data() + task * channels, from(to, first));
  });
}

// y, z [rows, channels], weight [channels] -> out; base: of the Hadamard transform.
void gated_rms_norm(const Floats& y, const Out& z, const std::optional<Floats>& z_scale, const Floats& weight, float eps,
                    int64_t group_size, const std::optional<Floats>& base, const std::optional<Floats>& reciprocal,
                    const Out& out) {
  const int64_t channels = static_cast<int64_t>(y.shape(1));
  const Rows rows(static_cast<int64_t>(y.shape(0)), channels);
  const Input gates = input_of(z, z_scale, channels);
  const Output to = output_of(out, reciprocal);
  const Hadamard hadamard = hadamard_of(base);
  std::vector<float> work(static_cast<size_t>(rows.tasks() * channels));
  rows.run([&, y = y.data(), weight = weight.data()](int64_t task, int64_t first, int64_t count) {
    kernels().pointwise.gated_rms_norm(y + first * channels, from(gates, first), count, channels, weight, eps, group_size,
                                       hadamard, work.data() + task * channels, from(to, first));
  });
}

// x [rows, channels], in place; base: the transposed base matrix [m, m].
void hadamard(const FloatsOut& x, const Floats& base) {
  const int64_t channels = static_cast<int64_t>(x.shape(1));
  const Hadamard transform = hadamard_of(base);
  Rows(static_cast<int64_t>(x.shape(0)), channels).run([&, x = x.data()](int64_t, int64_t first, int64_t rows) {
    kernels().pointwise.hadamard(x + first * channels, rows, channels, transform);
  });
}

}  // namespace

void bind_pointwise(nb::module_& m) {
  m.def("quantize", &quantize, nb::arg("x"), nb::arg("reciprocal"), nb::arg("codes"));
  m.def("quantize_per_token", &quantize_per_token, nb::arg("x"), nb::arg("bits"), nb::arg("codes"), nb::arg("scale"));
  m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("reciprocal").none(), nb::arg("out"));
  m.def("gate", &gate, nb::arg("y"), nb::arg("z"), nb::arg("z_scale").none(), nb::arg("base").none(),
        nb::arg("reciprocal").none(), nb::arg("out"));
  m.def("gated_rms_norm", &gated_rms_norm, nb::arg("y"), nb::arg("z"), nb::arg("z_scale").none(), nb::arg("weight"),
        nb::arg("eps"), nb::arg("group_size"), nb::arg("base").none(), nb::arg("reciprocal").none(), nb::arg("out"));
  m.def("hadamard", &hadamard, nb::arg("x"), nb::arg("base"));
}

}  // namespace ssmquant
