#include "kernels/linear.hpp"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "kernels/kernels.hpp"
#include "python/bindings.hpp"
#include "runtime/scratch.hpp"

namespace nb = nanobind;

namespace ssmquant {

namespace {

using Unsigned = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Runs a product of a row-major weight: some panels are packed into the second cache, meet all rows, and are forgotten. An
// engine packs once; an op keeps nothing, so it needs no second copy of the weight and cannot use a stale one.
// pack(first, last, to): packs panels [first, last) to the beginning of `to`, with the factors of groups.
template <class Pack>
void run(Linear linear, const Pack& pack) {
  const LinearKernels& kernel = kernels().linear;
  const int64_t n = linear.weight.n, k = linear.weight.k;
  LinearWeight panel = linear.weight;
  panel.n = kernel.panel;
  std::vector<int8_t> padded;  // only where a kernel would read behind the end
  if (k % 8 || panel.group % 8) {
    padded.resize(static_cast<size_t>(linear.rows * k + linear_overread));
    if (linear.rows > 0) std::memcpy(padded.data(), linear.x, static_cast<size_t>(linear.rows * k));
    linear.x = padded.data();
  }
  constexpr int64_t cache = 1 << 20;
  const int64_t panels = (n + kernel.panel - 1) / kernel.panel, bytes = kernel.packed_bytes(panel);
  const int64_t at_once = std::max<int64_t>(1, std::min(cache / std::max<int64_t>(bytes, 1), panels / 8));
  std::atomic<bool> failed{false};
  shared_pool().run((panels + at_once - 1) / at_once, [&](int64_t task) {
    const int64_t first = task * at_once, last = std::min(panels, first + at_once), column = first * kernel.panel;
    uint8_t* packed = nullptr;
    try {
      packed = reinterpret_cast<uint8_t*>(scratch((last - first) * bytes / static_cast<int64_t>(sizeof(float)) + 1));
    } catch (const std::bad_alloc&) {
      failed = true;
      return;
    }
    Linear part = linear;
    part.weight.packed = packed;
    part.weight.n = std::min(n, last * kernel.panel) - column;
    pack(first, last, packed);
    part.weight_scale.values += column * linear.weight_scale.step;
    if (part.bias) part.bias += column;
    part.out.reciprocal.values += column * linear.out.reciprocal.step;
    if (part.out.codes) part.out.codes += column;
    if (part.out.floats) part.out.floats += column;
    const LinearTasks tasks = kernel.tasks(part.weight, part.rows, 1);
    for (int64_t i = 0; i < tasks.count; ++i) kernel.run(part, tasks, i);
  });
  if (failed) throw std::bad_alloc();
}

Linear product(const Codes& x, const Floats& x_scale, int64_t n, const std::optional<Floats>& bias,
               const std::optional<Floats>& reciprocal, const Out& out) {
  Linear linear = {};
  linear.weight.n = n;
  linear.weight.k = static_cast<int64_t>(x.shape(1));
  linear.x = x.data();
  linear.rows = static_cast<int64_t>(x.shape(0));
  linear.x_stride = linear.weight.k;
  linear.x_scale = scale_of(x_scale);
  linear.bias = bias ? bias->data() : nullptr;
  linear.out = output_of(out, reciprocal);
  return linear;
}

// x [M, K], x_scale [1] or [M], weight [N, K], weight_scale [1] or [N] -> out [M, N].
void int8_linear(const Codes& x, const Floats& x_scale, const Codes& weight, const Floats& weight_scale,
                 const std::optional<Floats>& bias, const std::optional<Floats>& reciprocal, const Out& out) {
  Linear linear = product(x, x_scale, static_cast<int64_t>(weight.shape(0)), bias, reciprocal, out);
  linear.weight_scale = scale_of(weight_scale);
  const int64_t n = linear.weight.n, k = linear.weight.k, panel = kernels().linear.panel;
  const int8_t* codes = weight.data();
  nb::gil_scoped_release release;
  run(linear, [&](int64_t first, int64_t last, uint8_t* to) {
    const int64_t column = first * panel;
    kernels().linear.pack_int8(codes + column * k, k, n - column, k, 0, last - first, to);
  });
}

// Runs a product of codes [N, K / 2] in groups with `factors` [N, groups].
template <class Factor, class Pack>
void run_groups(Linear linear, const uint8_t* codes, const Factor* factors, int64_t groups, const Pack& pack) {
  const int64_t n = linear.weight.n, k = linear.weight.k, panel = kernels().linear.panel;
  linear.weight.group = k / groups;
  run(linear, [&](int64_t first, int64_t last, uint8_t* to) {
    const int64_t column = first * panel;
    pack(codes + column * k / 2, factors + column * groups, n - column, k, k / groups, 0, last - first, to);
  });
}

// x [M, K], x_scale [1] or [M], packed [N, K / 2], weight_scale [N, K / size] -> out [M, N].
void int4_linear(const Codes& x, const Floats& x_scale, const Unsigned& packed, const Floats& weight_scale,
                 const std::optional<Floats>& bias, const std::optional<Floats>& reciprocal, const Out& out) {
  Linear linear = product(x, x_scale, static_cast<int64_t>(packed.shape(0)), bias, reciprocal, out);
  linear.weight.type = WeightType::int4;
  const int64_t groups = static_cast<int64_t>(weight_scale.shape(1));
  nb::gil_scoped_release release;
  run_groups(linear, packed.data(), weight_scale.data(), groups, kernels().linear.pack_int4);
}

// x [M, K], x_scale [1] or [M], packed [N, K / 2], grid [N, K / size], weight_scale [N] -> out [M, N].
void int4_progressive_linear(const Codes& x, const Floats& x_scale, const Unsigned& packed, const Unsigned& grid,
                             const Floats& weight_scale, const std::optional<Floats>& bias,
                             const std::optional<Floats>& reciprocal, const Out& out) {
  Linear linear = product(x, x_scale, static_cast<int64_t>(packed.shape(0)), bias, reciprocal, out);
  linear.weight.type = WeightType::int4_progressive;
  linear.weight_scale = scale_of(weight_scale);
  const int64_t groups = static_cast<int64_t>(grid.shape(1));
  nb::gil_scoped_release release;
  run_groups(linear, packed.data(), grid.data(), groups, kernels().linear.pack_int4_progressive);
}

// ids [T], weight [V, C], scale [1] or [V] -> out [T, C].
void int8_embedding(const Ids& ids, const Codes& weight, const Floats& scale, const FloatsOut& out) {
  const int64_t count = static_cast<int64_t>(ids.size()), channels = static_cast<int64_t>(weight.shape(1));
  const int64_t rows = static_cast<int64_t>(weight.shape(0));
  const int64_t* id = ids.data();
  for (int64_t i = 0; i < count; ++i) {
    if (id[i] < 0 || id[i] >= rows) throw nb::index_error("int8_embedding: an id is outside of the table");
  }
  const Scale scales = scale_of(scale);
  const int8_t* codes = weight.data();
  float* to = out.data();
  const int64_t block = 1 + 65536 / (channels + 1);  // tokens a task: some ten microseconds
  nb::gil_scoped_release release;
  shared_pool().run((count + block - 1) / block, [&](int64_t task) {
    const int64_t start = task * block;
    kernels().linear.embed(codes, channels, scales, id + start, std::min(block, count - start), to + start * channels);
  });
}

}  // namespace

void bind_linear(nb::module_& m) {
  m.def("int8_linear", &int8_linear, nb::arg("x"), nb::arg("x_scale"), nb::arg("weight"), nb::arg("weight_scale"),
        nb::arg("bias").none(), nb::arg("reciprocal").none(), nb::arg("out"));
  m.def("int4_linear", &int4_linear, nb::arg("x"), nb::arg("x_scale"), nb::arg("packed"), nb::arg("weight_scale"),
        nb::arg("bias").none(), nb::arg("reciprocal").none(), nb::arg("out"));
  m.def("int4_progressive_linear", &int4_progressive_linear, nb::arg("x"), nb::arg("x_scale"), nb::arg("packed"),
        nb::arg("grid"), nb::arg("weight_scale"), nb::arg("bias").none(), nb::arg("reciprocal").none(), nb::arg("out"));
  m.def("int8_embedding", &int8_embedding, nb::arg("ids"), nb::arg("weight"), nb::arg("scale"), nb::arg("out"));
}

}  // namespace ssmquant
