// The CPU engine's classes for Python: parts are made from tensors, a model from its parts.
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/mamba1.hpp"
#include "engine/mamba2.hpp"
#include "engine/model.hpp"
#include "python/bindings.hpp"

namespace nb = nanobind;

namespace ssmquant {

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Shorts = nb::ndarray<const int16_t, nb::c_contig, nb::device::cpu>;
using Anything = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<float> copied(const Floats& values) { return {values.data(), values.data() + values.size()}; }
std::vector<float> copied(const std::optional<Floats>& values) {
  return values ? copied(*values) : std::vector<float>();
}
Factors factors(const Floats& values) { return {copied(values)}; }
Factors factors(const std::optional<Floats>& values) { return {copied(values)}; }

void expect(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("engine: ") + what);
}

// A pool of an engine's own, or the shared one.
std::shared_ptr<ThreadPool> make_pool(std::optional<int> threads) {
  if (!threads || *threads == shared_pool().size()) return {&shared_pool(), [](ThreadPool*) {}};
  return std::make_shared<ThreadPool>(*threads);
}

// The sites that a stage writes: codes under the reciprocals of scales, or floats of which some ranges of channels, each with
// its first channel, their number and their scale, become values of codes.
using Ranges = std::vector<std::tuple<int64_t, int64_t, Floats>>;

Sites make_sites(const std::optional<Floats>& reciprocal, const Ranges& rounded) {
  Sites sites{factors(reciprocal), {}};
  for (const auto& [first, channels, scale] : rounded) {
    Sites::Rounded site{first, channels, factors(scale), factors(scale)};
    for (float& value : site.reciprocal.values) value = 1.0f / value;
    expect(scale.size() == 1 || static_cast<int64_t>(scale.size()) == channels, "scales are one or one a channel");
    sites.rounded.push_back(std::move(site));
  }
  expect(rounded.empty() || !sites.codes(), "what is codes is not rounded");
  return sites;
}

// What a weight meets and what becomes of its results: the scale of the codes that come in (none: floats do), a bias, sites.
std::shared_ptr<PackedLinear> finished(PackedLinear packed, std::optional<float> x_scale, const std::optional<Floats>& bias,
                                       const Sites& sites) {
  auto linear = std::make_shared<PackedLinear>(std::move(packed));
  if (x_scale) linear->x_scale.values = {*x_scale};
  linear->bias = copied(bias);
  linear->sites = sites;
  const auto one_or_all = [&](size_t size) { return size <= 1 || static_cast<int64_t>(size) == linear->outputs(); };
  const WeightType type = linear->weight().type;
  expect(!x_scale || type == WeightType::int8 || type == WeightType::int4 || type == WeightType::int4_progressive,
         "codes meet int8 and int4 weights without zero points");
  expect(linear->bias.empty() || static_cast<int64_t>(linear->bias.size()) == linear->outputs(), "a bias has one value a row");
  expect(one_or_all(linear->sites.reciprocal.values.size()), "scales are one or one a row");
  expect(one_or_all(linear->weight_scale().values.size()), "weight scales are one or one a row");
  return linear;
}

// Packs without Python's lock.
template <class Pack>
std::shared_ptr<PackedLinear> packed(const Pack& pack, std::optional<float> x_scale, const std::optional<Floats>& bias,
                                     const Sites& sites) {
  PackedLinear made = [&] {
    nb::gil_scoped_release release;
    return pack();
  }();
  return finished(std::move(made), x_scale, bias, sites);
}

std::shared_ptr<PackedLinear> int8_linear(ThreadPool& pool, const Codes& codes, const Floats& scale,
                                          std::optional<float> x_scale, const std::optional<Floats>& bias, const Sites& sites,
                                          bool consume) {
  expect(codes.ndim() == 2, "codes are [out, in]");
  const int8_t* data = codes.data();
  const int64_t n = static_cast<int64_t>(codes.shape(0)), k = static_cast<int64_t>(codes.shape(1));
  std::vector<float> scales = copied(scale);
  return packed([&] { return PackedLinear::int8(pool, data, n, k, std::move(scales), consume); }, x_scale, bias, sites);
}

std::shared_ptr<PackedLinear> int4_linear(ThreadPool& pool, const Bytes& codes, const Floats& scale,
                                          std::optional<float> x_scale, const std::optional<Floats>& bias, const Sites& sites,
                                          bool consume) {
  expect(codes.ndim() == 2 && scale.ndim() == 2 && scale.shape(0) == codes.shape(0), "scales are [out, groups]");
  const uint8_t* data = codes.data();
  const float* scales = scale.data();
  const int64_t n = static_cast<int64_t>(codes.shape(0)), k = 2 * static_cast<int64_t>(codes.shape(1));
  const int64_t groups = static_cast<int64_t>(scale.shape(1));
  return packed([&] { return PackedLinear::int4(pool, data, n, k, scales, groups, consume); }, x_scale, bias, sites);
}

std::shared_ptr<PackedLinear> int4_progressive_linear(ThreadPool& pool, const Bytes& codes, const Bytes& grid,
                                                      const Floats& scale, std::optional<float> x_scale,
                                                      const std::optional<Floats>& bias, const Sites& sites, bool consume) {
  expect(codes.ndim() == 2 && grid.ndim() == 2 && grid.shape(0) == codes.shape(0), "grids are [out, groups]");
  const uint8_t *data = codes.data(), *grids = grid.data();
  const int64_t n = static_cast<int64_t>(codes.shape(0)), k = 2 * static_cast<int64_t>(codes.shape(1));
  const int64_t groups = static_cast<int64_t>(grid.shape(1));
  std::vector<float> scales = copied(scale);
  return packed([&] { return PackedLinear::int4_progressive(pool, data, n, k, grids, groups, std::move(scales), consume); },
                x_scale, bias, sites);
}

std::shared_ptr<PackedLinear> int4_asymmetric_linear(ThreadPool& pool, const Bytes& codes, const Floats& scale,
                                                     const Codes& zero_point, std::optional<float> x_scale,
                                                     const std::optional<Floats>& bias, const Sites& sites, bool consume) {
  expect(codes.ndim() == 2 && scale.ndim() == 2 && scale.shape(0) == codes.shape(0), "scales are [out, groups]");
  expect(zero_point.size() == scale.size(), "there is a zero point for each scale");
  const uint8_t* data = codes.data();
  const float* scales = scale.data();
  const int8_t* points = zero_point.data();
  const int64_t n = static_cast<int64_t>(codes.shape(0)), k = 2 * static_cast<int64_t>(codes.shape(1));
  const int64_t groups = static_cast<int64_t>(scale.shape(1));
  return packed([&] { return PackedLinear::int4_asymmetric(pool, data, n, k, scales, points, groups, consume); }, x_scale, bias,
                sites);
}

WeightType float_type(const std::string& name) {
  if (name == "bfloat16") return WeightType::bfloat16;
  if (name == "float16") return WeightType::float16;
  expect(name == "float32", "a float weight is kept in float32, float16 or bfloat16");
  return WeightType::float32;
}

// type: what the weight is kept in; it has all of the weight's numbers.
std::shared_ptr<PackedLinear> dense_linear(ThreadPool& pool, const Anything& weight, const std::string& type,
                                           std::optional<float> x_scale, const std::optional<Floats>& bias, const Sites& sites,
                                           bool consume) {
  expect(weight.ndim() == 2, "a weight is [out, in]");
  const bool single = weight.dtype() == nb::dtype<float>();
  const WeightType kept = float_type(type);
  expect(single || (weight.dtype().bits == 16 && kept == WeightType::float16), "a float weight is float32, or float16 and kept so");
  const void* data = weight.data();
  const int64_t n = static_cast<int64_t>(weight.shape(0)), k = static_cast<int64_t>(weight.shape(1));
  return packed(
      [&] {
        return single ? PackedLinear::singles(pool, static_cast<const float*>(data), kept, n, k, consume)
                      : PackedLinear::halves(pool, static_cast<const uint16_t*>(data), n, k, consume);
      },
      x_scale, bias, sites);
}

Norm make_norm(const Floats& weight, float eps, const Sites& sites) { return {copied(weight), eps, sites}; }

// weight: codes or floats [taps, channels]. scale: of codes that come in, times that of codes that they meet.
Convolution make_convolution(const Anything& weight, const std::optional<Floats>& scale, const std::optional<Floats>& bias,
                             const Sites& sites) {
  expect(weight.ndim() == 2, "the weight of a convolution is [taps, channels]");
  Convolution conv;
  conv.taps = static_cast<int64_t>(weight.shape(0));
  conv.channels = static_cast<int64_t>(weight.shape(1));
  conv.takes_codes = scale.has_value();
  if (weight.dtype() == nb::dtype<float>()) {
    const float* values = static_cast<const float*>(weight.data());
    conv.floats.assign(values, values + weight.size());
  } else {
    expect(weight.dtype() == nb::dtype<int8_t>() && scale, "codes of a convolution meet codes");
    const int8_t* codes = static_cast<const int8_t*>(weight.data());
    conv.codes.assign(codes, codes + weight.size());
  }
  conv.scale = factors(scale);
  conv.bias = copied(bias);
  conv.sites = sites;
  return conv;
}

Transform make_transform(const std::optional<Floats>& base) {
  if (!base) return {};
  return {true, static_cast<int64_t>(base->shape(0)), copied(*base)};
}

StateType state_type(const std::string& name) {
  if (name == "int8") return StateType::int8;
  if (name == "float16") return StateType::float16;
  expect(name == "float32", "a state is float32, float16 or int8");
  return StateType::float32;
}

using Weights = std::shared_ptr<PackedLinear>;

// Of z, x, B, C and dt, where they are codes.
using Scales = std::array<std::optional<Floats>, 5>;

template <class Constants>
void set_scales(Constants& c, const Scales& scales) {
  Factors* const all[] = {&c.z_scale, &c.x_scale, &c.B_scale, &c.C_scale, &c.dt_scale};
  for (size_t i = 0; i < scales.size(); ++i) *all[i] = factors(scales[i]);
}

// What all mixers' stages must agree on: who gives codes, and who takes them.
void expect_agreement(const Norm& norm, const Weights& in_proj, const Convolution& conv, const Sites& y, const Weights& out_proj) {
  expect(norm.sites.codes() == in_proj->takes_codes() && in_proj->sites.codes() == conv.takes_codes &&
             y.codes() == out_proj->takes_codes(),
         "a stage takes codes where it is given floats, or floats where it is given codes");
}

std::shared_ptr<Layer> mamba2(const Norm& norm, const Weights& in_proj, const Convolution& conv, const Weights& out_proj,
                              int64_t heads, int64_t headdim, int64_t groups, int64_t d_state, float dt_min, float dt_max,
                              const Floats& A, const Floats& D, const Floats& dt_bias, const Scales& scales,
                              const Floats& norm_weight, float norm_eps, const Transform& transform, const Sites& y,
                              const std::string& state, int64_t interval,
                              const std::optional<Floats>& state_scale, const std::optional<Shorts>& state_row) {
  Mamba2Constants c;
  c.heads = heads;
  c.headdim = headdim;
  c.groups = groups;
  c.d_state = d_state;
  c.dt_min = dt_min;
  c.dt_max = dt_max;
  c.A = copied(A);
  c.D = copied(D);
  c.dt_bias = copied(dt_bias);
  set_scales(c, scales);
  c.norm_weight = copied(norm_weight);
  c.norm_eps = norm_eps;
  c.transform = transform;
  c.y = y;
  c.state_type = state_type(state);
  c.interval = interval;
  c.state_scale = copied(state_scale);
  c.state_columns = state_scale ? static_cast<int64_t>(state_scale->shape(state_scale->ndim() - 1)) : 1;
  if (state_row) c.state_row.assign(state_row->data(), state_row->data() + state_row->size());
  expect_agreement(norm, in_proj, conv, c.y, out_proj);
  expect(conv.takes_codes == !c.z_scale.values.empty() && conv.takes_codes == !c.dt_scale.values.empty() &&
             conv.sites.codes() == !c.x_scale.values.empty() && conv.sites.codes() == !c.B_scale.values.empty() &&
             conv.sites.codes() == !c.C_scale.values.empty(),
         "codes have a scale, and floats have none");
  expect(heads % groups == 0 && conv.channels == c.d_inner() + 2 * c.group_width(), "sizes of the mixer disagree");
  expect(in_proj->outputs() == c.d_inner() + conv.channels + heads, "in_proj has rows for z, x, B, C and dt");
  expect(out_proj->inputs() == c.d_inner() && c.norm_weight.size() == static_cast<size_t>(c.d_inner()),
         "out_proj reads d_inner channels");
  return std::make_shared<Mamba2Layer>(norm, in_proj, conv, std::move(c), out_proj);
}

std::shared_ptr<Layer> mamba1(const Norm& norm, const Weights& in_proj, const Convolution& conv, const Weights& x_proj,
                              const Weights& dt_proj, const Weights& out_proj, int64_t d_state, int64_t dt_rank,
                              const Floats& A, const Floats& D, const Floats& dt_bias, const Scales& scales,
                              float select_eps, const Sites& selected, const Transform& transform, const Sites& y,
                              const std::string& state, int64_t interval, const std::optional<Floats>& state_scale) {
  Mamba1Constants c;
  c.d_state = d_state;
  c.dt_rank = dt_rank;
  c.A = copied(A);
  c.D = copied(D);
  c.dt_bias = copied(dt_bias);
  set_scales(c, scales);
  c.select_eps = select_eps;
  c.selected = selected;
  c.transform = transform;
  c.y = y;
  c.state_type = state_type(state);
  c.interval = interval;
  c.state_scale = copied(state_scale);
  expect_agreement(norm, in_proj, conv, c.y, out_proj);
  expect(conv.sites.codes() == x_proj->takes_codes() && c.selected.codes() == dt_proj->takes_codes(),
         "a stage takes codes where it is given floats, or floats where it is given codes");
  expect(conv.takes_codes == !c.z_scale.values.empty() && conv.sites.codes() == !c.x_scale.values.empty() &&
             c.selected.codes() == !c.B_scale.values.empty() && c.selected.codes() == !c.C_scale.values.empty() &&
             dt_proj->sites.codes() == !c.dt_scale.values.empty(),
         "codes have a scale, and floats have none");
  expect(in_proj->outputs() == 2 * conv.channels && out_proj->inputs() == conv.channels, "sizes of the mixer disagree");
  expect(x_proj->outputs() == dt_rank + 2 * d_state && dt_proj->inputs() == dt_rank, "x_proj has rows for dt, B and C");
  return std::make_shared<Mamba1Layer>(norm, in_proj, conv, x_proj, dt_proj, std::move(c), out_proj);
}

// The table stays where it is; `table` keeps it alive, and letting go of it needs Python's lock.
std::shared_ptr<const void> owner_of(const Anything& table) {
  return {table.data(), [held = new Anything(table)](const void*) {
            nb::gil_scoped_acquire acquire;
            delete held;
          }};
}

std::shared_ptr<Model> make_model(int64_t d_model, const std::optional<Anything>& table, const std::optional<Floats>& scale,
                                  std::vector<std::shared_ptr<Layer>> layers, const Norm& final_norm, const Weights& head,
                                  std::shared_ptr<ThreadPool> pool) {
  Embedding embedding;
  embedding.scale = factors(scale);
  if (table) {
    const nb::dlpack::dtype type = table->dtype();
    const int64_t values = static_cast<int64_t>(table->shape(table->ndim() - 1)) * (type == nb::dtype<uint8_t>() ? 2 : 1);
    expect(table->ndim() == 2 && values == d_model, "the embedding is [vocab, d_model]");
    embedding.owner = owner_of(*table);
    if (type == nb::dtype<uint8_t>()) {
      expect(scale && scale->ndim() == 2 && scale->shape(0) == table->shape(0), "scales of int4 are [vocab, groups]");
      embedding.int4 = static_cast<const uint8_t*>(table->data());
      embedding.group = d_model / static_cast<int64_t>(scale->shape(1));
    } else if (type == nb::dtype<int8_t>()) {
      embedding.codes = static_cast<const int8_t*>(table->data());
    } else if (type == nb::dtype<float>()) {
      embedding.floats = static_cast<const float*>(table->data());
    } else {
      expect(type.bits == 16, "the embedding is int8, int4, float16 or float32");
      embedding.halves = static_cast<const uint16_t*>(table->data());
    }
  }
  expect(head->inputs() == d_model, "the head reads d_model channels");
  expect(final_norm.sites.codes() == head->takes_codes(), "the head takes what the final norm gives");
  return std::make_shared<Model>(d_model, std::move(embedding), std::move(layers), final_norm, head, std::move(pool));
}

// Whether Python wants to interrupt what runs (Ctrl-C). Asked at most every few milliseconds: it needs Python's lock.
class Signals {
 public:
  bool operator()() {
    const auto now = Clock::now();
    if (now < next_) return false;
    next_ = now + std::chrono::milliseconds(20);
    nb::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point next_ = Clock::now() + std::chrono::milliseconds(20);
};

void check_ids(const std::vector<int64_t>& ids, int64_t vocab) {
  for (int64_t id : ids) {
    if (id < 0 || id >= vocab) {
      throw nb::index_error(
          ("token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(vocab) + " tokens").c_str());
    }
  }
}

std::vector<SequenceState> prefill(const Model& model, const std::vector<std::vector<int64_t>>& prompts,
                                   const std::vector<SequenceState>& states, bool all, const FloatsOut& logits) {
  size_t tokens = 0;
  for (const std::vector<int64_t>& prompt : prompts) {
    expect(!prompt.empty(), "a prompt has no tokens");
    check_ids(prompt, model.vocab());
    tokens += prompt.size();
  }
  expect(states.size() == prompts.size(), "a state for each prompt");
  expect(logits.size() == (all ? tokens : prompts.size()) * static_cast<size_t>(model.vocab()), "logits have another size");
  float* out = logits.data();
  std::vector<SequenceState> after;
  {
    nb::gil_scoped_release release;
    Signals signals;
    after = model.prefill(prompts, states, all ? Positions::all : Positions::last, out, [&] { return signals(); });
  }
  if (after.size() < prompts.size()) throw nb::python_error();
  return after;
}

std::vector<SequenceState> step(const Model& model, const Ids& tokens, const std::vector<SequenceState>& states,
                                const FloatsOut& logits) {
  const std::vector<int64_t> ids(tokens.data(), tokens.data() + tokens.size());
  check_ids(ids, model.vocab());
  expect(states.size() == ids.size() && !ids.empty(), "a token for each state");
  expect(logits.size() == ids.size() * static_cast<size_t>(model.vocab()), "logits have another size");
  for (const SequenceState& state : states) expect(state.moment != nullptr, "a step goes on from a state");
  float* out = logits.data();
  nb::gil_scoped_release release;
  return model.step(ids, states, out);
}

nb::bytes bytes_of(const Model::Memory& memory) {
  return nb::bytes(memory.data, static_cast<size_t>(memory.bytes));
}

std::vector<int64_t> sizes(const Model& model, size_t layer) {
  const LayerLayout& memory = model.states().layout().layers.at(layer);
  std::vector<int64_t> bytes = {memory.window_bytes};
  for (size_t array = 0; array < LayerLayout::others; ++array) {
    bytes.push_back(memory.pending[array].parts * memory.pending[array].bytes);
  }
  return bytes;
}

Model::Memory memory_of(const Bytes& bytes) { return {bytes.data(), static_cast<int64_t>(bytes.size())}; }

SequenceState restore(const Model& model, int64_t tokens, const std::vector<std::vector<Bytes>>& layers) {
  std::vector<Model::Saved> saved;
  for (const std::vector<Bytes>& parts : layers) {
    expect(parts.size() == 5, "a layer's parts are window, state, x, B and dt");
    saved.push_back({memory_of(parts[0]), memory_of(parts[1]), memory_of(parts[2]), memory_of(parts[3]), memory_of(parts[4])});
  }
  nb::gil_scoped_release release;
  return model.restore(tokens, saved);
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::class_<ThreadPool>(m, "ThreadPool").def_prop_ro("size", &ThreadPool::size);
  m.def("thread_pool", &make_pool, nb::arg("threads").none(), "The shared pool, or one of so many threads.");
  nb::class_<PackedLinear>(m, "PackedLinear").def_prop_ro("bytes", &PackedLinear::bytes);
  nb::class_<Sites>(m, "Sites");
  m.def("sites", &make_sites, nb::arg("reciprocal").none(), nb::arg("rounded"),
        "What becomes of a stage's results: codes under reciprocals of scales, or floats, ranges of which are rounded.");
  // Behind the stored tensors, all have the same arguments.
  m.def("int8_linear_packed", &int8_linear, nb::arg("pool"), nb::arg("codes"), nb::arg("scale"), nb::kw_only(),
        nb::arg("x_scale").none(), nb::arg("bias").none(), nb::arg("sites"), nb::arg("consume"));
  m.def("int4_linear_packed", &int4_linear, nb::arg("pool"), nb::arg("codes"), nb::arg("scale"), nb::kw_only(),
        nb::arg("x_scale").none(), nb::arg("bias").none(), nb::arg("sites"), nb::arg("consume"));
  m.def("int4_progressive_linear_packed", &int4_progressive_linear, nb::arg("pool"), nb::arg("codes"), nb::arg("grid"),
        nb::arg("scale"), nb::kw_only(), nb::arg("x_scale").none(), nb::arg("bias").none(), nb::arg("sites"),
        nb::arg("consume"));
  m.def("int4_asymmetric_linear_packed", &int4_asymmetric_linear, nb::arg("pool"), nb::arg("codes"), nb::arg("scale"),
        nb::arg("zero_point"), nb::kw_only(), nb::arg("x_scale").none(), nb::arg("bias").none(), nb::arg("sites"),
        nb::arg("consume"));
  m.def("dense_linear_packed", &dense_linear, nb::arg("pool"), nb::arg("weight"), nb::arg("type"), nb::kw_only(),
        nb::arg("x_scale").none(), nb::arg("bias").none(), nb::arg("sites"), nb::arg("consume"));
  nb::class_<Norm>(m, "Norm");
  m.def("norm", &make_norm, nb::arg("weight"), nb::arg("eps"), nb::arg("sites"));
  nb::class_<Convolution>(m, "Convolution");
  m.def("convolution", &make_convolution, nb::arg("weight"), nb::arg("scale").none(), nb::arg("bias").none(), nb::arg("sites"));
  nb::class_<Transform>(m, "Transform");
  m.def("transform", &make_transform, nb::arg("base").none(), "The Hadamard transform over this base matrix, or none.");
  nb::class_<Layer>(m, "Layer").def_prop_ro("bytes", &Layer::bytes);
  m.def("mamba2", &mamba2, nb::kw_only(), nb::arg("norm"), nb::arg("in_proj"), nb::arg("conv"), nb::arg("out_proj"),
        nb::arg("heads"), nb::arg("headdim"), nb::arg("groups"), nb::arg("d_state"), nb::arg("dt_min"), nb::arg("dt_max"),
        nb::arg("A"), nb::arg("D"), nb::arg("dt_bias"), nb::arg("scales"), nb::arg("norm_weight"), nb::arg("norm_eps"),
        nb::arg("transform"), nb::arg("y"), nb::arg("state"), nb::arg("interval"), nb::arg("state_scale").none(),
        nb::arg("state_row").none());
  m.def("mamba1", &mamba1, nb::kw_only(), nb::arg("norm"), nb::arg("in_proj"), nb::arg("conv"), nb::arg("x_proj"),
        nb::arg("dt_proj"), nb::arg("out_proj"), nb::arg("d_state"), nb::arg("dt_rank"), nb::arg("A"), nb::arg("D"),
        nb::arg("dt_bias"), nb::arg("scales"), nb::arg("select_eps"), nb::arg("selected"), nb::arg("transform"), nb::arg("y"),
        nb::arg("state"), nb::arg("interval"), nb::arg("state_scale").none());
  nb::class_<SequenceState>(m, "SequenceState")
      .def(nb::init<>(), "A sequence without tokens.")
      .def_ro("tokens", &SequenceState::tokens);
  nb::class_<Model>(m, "Model")
      .def_prop_ro("vocab", &Model::vocab)
      .def_prop_ro("bytes", &Model::bytes)
      .def("state_bytes", [](const Model& model, const SequenceState& state) { return model.states().bytes(state.tokens); })
      .def("prefill", &prefill, nb::arg("prompts"), nb::arg("states"), nb::arg("all"), nb::arg("logits"),
           "Read prompts, each from a state on; write logits; return the states after them.")
      .def("step", &step, nb::arg("tokens"), nb::arg("states"), nb::arg("logits"),
           "Read one more token of each sequence; write logits; return the states after them.")
      .def("window", [](const Model& model, const SequenceState& state, int64_t layer) { return bytes_of(model.window(state, layer)); })
      .def("recurrent", [](const Model& model, const SequenceState& state, int64_t layer) { return bytes_of(model.recurrent(state, layer)); })
      .def("pending", [](const Model& model, const SequenceState& state, int64_t layer, int64_t array) { return bytes_of(model.pending(state, layer, array)); },
           "Codes or floats of x (0), B (1) or dt (2), in the layout of the kernels.")
      .def("sizes", &sizes, nb::arg("layer"), "Bytes of the window and of the pending x, B and dt.")
      .def("restore", &restore, nb::arg("tokens"), nb::arg("layers"));
  m.def("model", &make_model, nb::arg("d_model"), nb::arg("embedding").none(), nb::arg("embedding_scale").none(),
        nb::arg("layers"), nb::arg("final_norm"), nb::arg("head"), nb::arg("pool"));
}

}  // namespace ssmquant
