// The scans of both generations. An op has all tokens since the last rounding among its arguments: what the kernels would keep
// for the next call goes to memory that is forgotten.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <vector>

#include "kernels/kernels.hpp"
#include "python/bindings.hpp"

namespace nb = nanobind;

namespace ssmquant {

namespace {

using Rows = nb::ndarray<const int16_t, nb::c_contig, nb::device::cpu>;

int64_t size_of(const Out& array, size_t dimension) { return static_cast<int64_t>(array.shape(dimension)); }

StateType state_type(const Out& state) {
  if (state.dtype() == nb::dtype<int8_t>()) return StateType::int8;
  return state.dtype().bits == 16 ? StateType::float16 : StateType::float32;
}

// Element `at` of an array of any type.
void* element(const Out& array, int64_t at) { return static_cast<char*>(array.data()) + at * (array.dtype().bits / 8); }

// The part of an input from row `row` on.
Input from(Input input, int64_t row) {
  if (input.codes) input.codes += row * input.stride;
  if (input.floats) input.floats += row * input.stride;
  return input;
}

// Floats of memory, aligned to 64 bytes, contents unknown.
class Memory {
 public:
  explicit Memory(int64_t floats) : all_(static_cast<size_t>(floats + 16)) {
    const size_t misplaced = reinterpret_cast<uintptr_t>(all_.data()) % 64 / sizeof(float);
    start_ = all_.data() + (16 - misplaced) % 16;
  }
  float* data() const { return start_; }

 private:
  std::vector<float> all_;
  float* start_;
};

// Arguments as those of the op, contiguous; the scale of an int8 state as a table [rows, d_state or 1] and the row of each
// [heads * headdim]. Writes y [B, L, H, P] and next [B, H, P, N].
void ssd(const Out& x, const std::optional<Floats>& x_scale, const Out& dt, const std::optional<Floats>& dt_scale,
         const Floats& A, const Out& B, const std::optional<Floats>& B_scale, const Out& C,
         const std::optional<Floats>& C_scale, const Floats& D, const Floats& dt_bias, float dt_min, float dt_max,
         const Out& state, const std::optional<Floats>& state_scale, const std::optional<Rows>& state_row, int64_t interval,
         const FloatsOut& y, const Out& next) {
  const SsdKernels& kernel = kernels().ssd;
  SsdLayer layer = {};
  const int64_t batch = size_of(x, 0), tokens = size_of(x, 1);
  layer.heads = size_of(x, 2);
  layer.headdim = size_of(x, 3);
  layer.groups = size_of(B, 2);
  layer.d_state = size_of(B, 3);
  layer.A = A.data();
  layer.D = D.data();
  layer.dt_bias = dt_bias.data();
  layer.dt_min = dt_min;
  layer.dt_max = dt_max;
  layer.state_type = state_type(state);
  layer.interval = interval;
  layer.state_scale = state_scale ? state_scale->data() : nullptr;
  layer.state_row = state_row ? state_row->data() : nullptr;
  layer.state_columns = state_scale ? static_cast<int64_t>(state_scale->shape(1)) : 1;
  const int64_t inner = layer.heads * layer.headdim, shared = layer.groups * layer.d_state;
  const int64_t state_size = inner * layer.d_state;
  SsdInputs inputs = {input_of(x, x_scale, inner), input_of(dt, dt_scale, layer.heads), input_of(B, B_scale, shared),
                      input_of(C, C_scale, shared), tokens};
  ThreadPool& pool = shared_pool();
  const int64_t parts = std::min<int64_t>(layer.heads, 4 * pool.size()), work_floats = kernel.work_floats(layer);
  SsdSequence sequence = {};
  const Memory work(parts * work_floats), chunks(kernel.shared_floats(layer, sequence, tokens));
  const Memory pending_x(interval * inner), pending_B(interval * shared), pending_dt(3 * interval * layer.heads);
  sequence.x = pending_x.data();
  sequence.B = pending_B.data();
  sequence.dt = pending_dt.data();
  sequence.decay = sequence.dt + interval * layer.heads;
  sequence.decay_low = sequence.decay + interval * layer.heads;
  float* to = y.data();
  nb::gil_scoped_release release;
  for (int64_t row = 0; row < batch; ++row) {
    const SsdInputs tokens_of_row = {from(inputs.x, row * tokens), from(inputs.dt, row * tokens), from(inputs.B, row * tokens),
                                     from(inputs.C, row * tokens), tokens};
    sequence.state = element(state, row * state_size);
    sequence.next = element(next, row * state_size);
    float* outputs = to + row * tokens * inner;
    const auto heads = [&](int64_t part) { return part * layer.heads / parts; };
    if (tokens == 1 && !interval) {
      pool.run(parts, [&](int64_t part) {
        kernel.step(layer, sequence, tokens_of_row, heads(part), heads(part + 1), work.data() + part * work_floats, outputs);
      });
      continue;
    }
    pool.run(kernel.chunks(layer, sequence, tokens) * layer.groups, [&](int64_t item) {
      kernel.prepare(layer, sequence, tokens_of_row, item, item + 1, chunks.data());
    });
    pool.run(parts, [&](int64_t part) {
      kernel.prefill(layer, sequence, tokens_of_row, chunks.data(), heads(part), heads(part + 1),
                     work.data() + part * work_floats, outputs, inner);
    });
  }
}

// Arguments as those of the op, contiguous, but A [d_state, channels], state and next [B, d_state, channels] and state_scale
// [1 or d_state, 1 or channels]. Writes y [B, L, C] and next.
void selective_scan(const Out& x, const std::optional<Floats>& x_scale, const Out& dt, const std::optional<Floats>& dt_scale,
                    const Floats& A, const Out& B, const std::optional<Floats>& B_scale, const Out& C,
                    const std::optional<Floats>& C_scale, const Floats& D, const Floats& dt_bias, const Out& state,
                    const std::optional<Floats>& state_scale, int64_t interval, const FloatsOut& y, const Out& next) {
  const ScanKernels& kernel = kernels().selective_scan;
  ScanLayer layer = {};
  const int64_t batch = size_of(x, 0), tokens = size_of(x, 1);
  layer.channels = size_of(x, 2);
  layer.d_state = static_cast<int64_t>(A.shape(0));
  layer.A = A.data();
  layer.D = D.data();
  layer.dt_bias = dt_bias.data();
  layer.state_type = state_type(state);
  layer.interval = interval;
  if (state_scale) {
    layer.state_scale = state_scale->data();
    layer.scale_c = state_scale->shape(1) > 1 ? 1 : 0;
    layer.scale_n = state_scale->shape(0) > 1 ? static_cast<int64_t>(state_scale->shape(1)) : 0;
  }
  const Input inputs_x = input_of(x, x_scale, layer.channels), inputs_dt = input_of(dt, dt_scale, layer.channels);
  const Input inputs_B = input_of(B, B_scale, layer.d_state), inputs_C = input_of(C, C_scale, layer.d_state);
  constexpr int64_t part = 64;  // channels a task
  const int64_t parts = (layer.channels + part - 1) / part, work_floats = kernel.work_floats(layer, part);
  const Memory work(batch * parts * work_floats), pending(batch * 2 * interval * layer.channels);
  float* to = y.data();
  nb::gil_scoped_release release;
  shared_pool().run(batch * parts, [&](int64_t task) {
    const int64_t row = task / parts, first = task % parts * part, last = std::min(layer.channels, first + part);
    ScanSequence sequence = {};
    sequence.state = element(state, row * layer.d_state * layer.channels);
    sequence.next = element(next, row * layer.d_state * layer.channels);
    sequence.dt = pending.data() + 2 * row * interval * layer.channels;
    sequence.x = sequence.dt + interval * layer.channels;
    const ScanInputs inputs = {from(inputs_x, row * tokens), from(inputs_dt, row * tokens), from(inputs_B, row * tokens),
                               from(inputs_C, row * tokens), tokens};
    kernel.run(layer, sequence, inputs, first, last, work.data() + task * work_floats, to + row * tokens * layer.channels,
               layer.channels);
  });
}

}  // namespace

void bind_scan(nb::module_& m) {
  m.def("ssd", &ssd, nb::arg("x"), nb::arg("x_scale").none(), nb::arg("dt"), nb::arg("dt_scale").none(), nb::arg("A"),
        nb::arg("B"), nb::arg("B_scale").none(), nb::arg("C"), nb::arg("C_scale").none(), nb::arg("D"), nb::arg("dt_bias"),
        nb::arg("dt_min"), nb::arg("dt_max"), nb::arg("state"), nb::arg("state_scale").none(), nb::arg("state_row").none(),
        nb::arg("interval"), nb::arg("y"), nb::arg("next"));
  m.def("selective_scan", &selective_scan, nb::arg("x"), nb::arg("x_scale").none(), nb::arg("dt"), nb::arg("dt_scale").none(),
        nb::arg("A"), nb::arg("B"), nb::arg("B_scale").none(), nb::arg("C"), nb::arg("C_scale").none(), nb::arg("D"),
        nb::arg("dt_bias"), nb::arg("state"), nb::arg("state_scale").none(), nb::arg("interval"), nb::arg("y"),
        nb::arg("next"));
}

}  // namespace ssmquant
