// The engine on a small random model: states are values, whatever threads step them, and blocks and pieces change nothing.
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "engine/mamba1.hpp"
#include "engine/mamba2.hpp"
#include "engine/model.hpp"
#include "tests/test.hpp"

namespace ssmquant::tests {
namespace {

constexpr int64_t kModel = 48, kVocab = 101, kInner = 96, kState = 16, kHeads = 12, kTaps = 4, kRank = 4;

struct Maker {
  Draw draw;
  ThreadPool& pool;
  bool codes;  // of all sites; else all are floats

  Sites sites() const { return codes ? Sites{{{1.0f / 0.03f}}, {}} : Sites{}; }
  Factors scale() const { return codes ? Factors{{0.03f}} : Factors{}; }

  std::shared_ptr<PackedLinear> linear(int64_t n, int64_t k, bool to_sites) {
    const std::vector<int8_t> weight = draw.codes(n * k);
    const float unit = std::sqrt(3.0f / static_cast<float>(k)) / 127.0f;
    std::vector<float> values(weight.begin(), weight.end());
    for (float& value : values) value *= unit;
    auto made = std::make_shared<PackedLinear>(
        codes ? PackedLinear::int8(pool, weight.data(), n, k, std::vector<float>(static_cast<size_t>(n), unit), false)
              : PackedLinear::singles(pool, values.data(), WeightType::bfloat16, n, k, false));
    made->x_scale = scale();
    if (to_sites) made->sites = sites();
    return made;
  }

  Norm norm() { return {draw.floats(kModel, 0.5f, 1.5f), 1e-5f, sites()}; }

  Convolution convolution(int64_t channels) {
    Convolution conv;
    conv.channels = channels;
    conv.taps = kTaps;
    conv.takes_codes = codes;
    const std::vector<int8_t> weight = draw.codes(channels * kTaps);
    if (codes) {
      conv.codes = weight;
      conv.scale.values = {0.03f * 0.004f};
    } else {
      for (int8_t code : weight) conv.floats.push_back(0.004f * static_cast<float>(code));
    }
    conv.bias = draw.floats(channels, -0.3f, 0.3f);
    conv.sites = sites();
    return conv;
  }

  std::shared_ptr<Layer> mamba2(StateType type, int64_t interval) {
    Mamba2Constants c{};
    c.heads = kHeads;
    c.headdim = kInner / kHeads;
    c.groups = 2;
    c.d_state = kState;
    c.dt_max = 1e9f;
    c.A = draw.floats(kHeads, -4.0f, -0.5f);
    c.D = draw.floats(kHeads, -1.0f, 1.0f);
    c.dt_bias = draw.floats(kHeads, -3.0f, 0.0f);
    c.z_scale = c.x_scale = c.B_scale = c.C_scale = c.dt_scale = scale();
    c.norm_weight = draw.floats(kInner, 0.5f, 1.5f);
    c.norm_eps = 1e-5f;
    c.y = sites();
    c.state_type = type;
    c.interval = interval;
    c.state_scale = {0.01f};
    c.state_columns = 1;
    const int64_t conv = kInner + 2 * c.group_width();
    return std::make_shared<Mamba2Layer>(norm(), linear(kInner + conv + kHeads, kModel, true), convolution(conv), c,
                                         linear(kModel, kInner, false));
  }

  std::shared_ptr<Layer> mamba1(StateType type, int64_t interval) {
    Mamba1Constants c{};
    c.d_state = kState;
    c.dt_rank = kRank;
    c.A = draw.floats(kState * kInner, -4.0f, -0.5f);
    c.D = draw.floats(kInner, -1.0f, 1.0f);
    c.dt_bias = draw.floats(kInner, -3.0f, 0.0f);
    c.z_scale = c.x_scale = c.B_scale = c.C_scale = c.dt_scale = scale();
    c.select_eps = -1.0f;
    c.selected = c.y = sites();
    c.state_type = type;
    c.interval = interval;
    c.state_scale = {0.01f};
    return std::make_shared<Mamba1Layer>(norm(), linear(2 * kInner, kModel, true), convolution(kInner),
                                         linear(kRank + 2 * kState, kInner, true), linear(kInner, kRank, true), c,
                                         linear(kModel, kInner, false));
  }
};

struct Case {
  const char* name;
  bool mamba2;
  StateType type;
  int64_t interval;
  bool codes;
  bool mixed = false;  // the second layer has a float32 state
};

const Case kCases[] = {{"mamba2 int8", true, StateType::int8, 16, true},
                       {"mamba2 float16", true, StateType::float16, 8, true},
                       {"mamba2 float32", true, StateType::float32, 0, true},
                       {"mamba2 mixed", true, StateType::float16, 8, true, true},
                       {"mamba1 int8", false, StateType::int8, 4, true},
                       {"mamba1 float16", false, StateType::float16, 1, true},
                       {"mamba1 float32", false, StateType::float32, 0, true},
                       {"mamba2 floats", true, StateType::float32, 0, false},
                       {"mamba2 floats, int8", true, StateType::int8, 16, false},
                       {"mamba1 floats", false, StateType::float32, 0, false},
                       {"mamba1 floats, int8", false, StateType::int8, 4, false}};

std::unique_ptr<Model> make(const Case& each, int threads) {
  auto pool = std::make_shared<ThreadPool>(threads);
  Maker maker{Draw(7), *pool, each.codes};
  std::vector<std::shared_ptr<Layer>> layers;
  for (int i = 0; i < 3; ++i) {
    const bool whole = each.mixed && i == 1;
    const StateType type = whole ? StateType::float32 : each.type;
    const int64_t interval = whole ? 0 : each.interval;
    layers.push_back(each.mamba2 ? maker.mamba2(type, interval) : maker.mamba1(type, interval));
  }
  const Norm norm = maker.norm();
  return std::make_unique<Model>(kModel, Embedding{}, std::move(layers), norm, maker.linear(kVocab, kModel, false), pool);
}

std::vector<int64_t> tokens(int64_t count, uint32_t seed) {
  Draw draw(seed);
  std::vector<int64_t> ids(static_cast<size_t>(count));
  for (int64_t& id : ids) id = draw.below(kVocab);
  return ids;
}

using Logits = std::vector<float>;

std::vector<SequenceState> read(const Model& model, const std::vector<std::vector<int64_t>>& prompts, Logits& logits) {
  logits.assign(prompts.size() * kVocab, 0.0f);
  return model.prefill(prompts, std::vector<SequenceState>(prompts.size()), Positions::last, logits.data(),
                       [] { return false; });
}

// Logits of some steps of one sequence, one after another.
Logits steps(const Model& model, SequenceState state, const std::vector<int64_t>& ids) {
  Logits all(ids.size() * kVocab);
  for (size_t i = 0; i < ids.size(); ++i) state = model.step({ids[i]}, {state}, all.data() + i * kVocab)[0];
  return all;
}

}  // namespace

TEST(engine_threads_change_nothing) {
  for (const Case& each : kCases) {
    const std::unique_ptr<Model> one = make(each, 1), three = make(each, 3);
    Logits a, b;
    const std::vector<SequenceState> from_one = read(*one, {tokens(77, 1), tokens(1, 2), tokens(600, 3)}, a);
    const std::vector<SequenceState> from_three = read(*three, {tokens(77, 1), tokens(1, 2), tokens(600, 3)}, b);
    CHECK(a == b, "%s: prefill", each.name);
    for (size_t row = 0; row < 3; ++row) {
      CHECK(steps(*one, from_one[row], tokens(40, 9)) == steps(*three, from_three[row], tokens(40, 9)), "%s: steps", each.name);
    }
    bool finite = true, zero = true;
    for (float value : a) finite &= std::isfinite(value), zero &= value == 0.0f;
    CHECK(finite && !zero, "%s: logits", each.name);
  }
}

TEST(engine_states_are_values) {
  for (const Case& each : kCases) {
    const std::unique_ptr<Model> model = make(each, 2);
    Logits logits;
    const SequenceState start = read(*model, {tokens(21, 1)}, logits)[0];
    const Logits expected = steps(*model, start, tokens(40, 2));
    std::vector<Logits> found(4);
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 4; ++i) {
      // Two go the same way as above, two another, all from the one state.
      threads.emplace_back([&, i] { found[i] = steps(*model, start, tokens(40, 2 + i % 2)); });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(found[0] == expected && found[2] == expected, "%s: the same way", each.name);
    CHECK(found[1] == found[3] && found[1] != expected, "%s: another way", each.name);
    CHECK(steps(*model, start, tokens(40, 2)) == expected, "%s: once more", each.name);
  }
}

TEST(engine_roundings_wait_for_older_values) {
  for (const Case& each : kCases) {
    const std::unique_ptr<Model> model = make(each, 2);
    const std::vector<int64_t> ids = tokens(40, 2);
    Logits logits, all(ids.size() * kVocab), again(kVocab);
    SequenceState state = read(*model, {tokens(21, 1)}, logits)[0];
    const Logits expected = steps(*model, state, ids);  // keeps no value but the newest
    std::vector<SequenceState> kept = {state};
    for (size_t i = 0; i < ids.size(); ++i) {
      state = model->step({ids[i]}, {state}, all.data() + i * kVocab)[0];
      kept.push_back(state);
    }
    CHECK(all == expected, "%s: with all values kept", each.name);
    for (size_t i = 0; i < ids.size(); ++i) {
      model->step({ids[i]}, {kept[i]}, again.data());
      CHECK(std::memcmp(again.data(), all.data() + i * kVocab, kVocab * sizeof(float)) == 0, "%s: value %zu", each.name, i);
    }
  }
}

// A state that goes on takes the place of the one before it, unless that one is kept.
TEST(engine_rounds_in_place) {
  const std::unique_ptr<Model> model = make(kCases[1], 2);
  Logits logits(kVocab);
  SequenceState state = read(*model, {tokens(8, 1)}, logits)[0];
  const auto data = [&] { return model->recurrent(state, 0).data; };
  const uint8_t* const start = data();
  const auto go_on = [&](int count) {
    for (int i = 0; i < count; ++i) state = model->step({i}, {state}, logits.data())[0];
  };
  go_on(9);
  CHECK(data() == start, "the state has another place");
  const SequenceState kept = state;
  const std::vector<uint8_t> before(start, start + model->recurrent(kept, 0).bytes);
  go_on(9);
  CHECK(data() != start, "the state of a value that is kept was changed");
  CHECK(std::memcmp(before.data(), model->recurrent(kept, 0).data, before.size()) == 0, "the value that is kept");
}

TEST(engine_rows_of_a_batch_are_as_if_alone) {
  for (const Case& each : kCases) {
    const std::unique_ptr<Model> model = make(each, 2);
    const std::vector<std::vector<int64_t>> prompts = {tokens(30, 1), tokens(700, 2), tokens(1, 3), tokens(64, 4)};
    Logits together, alone;
    std::vector<SequenceState> states = read(*model, prompts, together);
    for (size_t row = 0; row < prompts.size(); ++row) {
      const SequenceState state = read(*model, {prompts[row]}, alone)[0];
      CHECK(std::memcmp(alone.data(), together.data() + row * kVocab, kVocab * sizeof(float)) == 0, "%s: prompt", each.name);
      CHECK(steps(*model, state, tokens(20, 5)) == steps(*model, states[row], tokens(20, 5)), "%s: its state", each.name);
    }
    Logits batch(prompts.size() * kVocab);
    const std::vector<SequenceState> after = model->step({1, 2, 3, 4}, states, batch.data());
    for (size_t row = 0; row < prompts.size(); ++row) {
      const Logits one = steps(*model, states[row], {static_cast<int64_t>(row) + 1});
      CHECK(std::memcmp(one.data(), batch.data() + row * kVocab, kVocab * sizeof(float)) == 0, "%s: step", each.name);
      CHECK(after[row].tokens == states[row].tokens + 1, "%s: position", each.name);
    }
  }
}

TEST(engine_can_be_interrupted) {
  const std::unique_ptr<Model> model = make(kCases[0], 2);
  Logits logits;
  const SequenceState start = read(*model, {tokens(21, 1)}, logits)[0];
  const Logits expected = steps(*model, start, {5});
  int asked = 0;
  const std::vector<SequenceState> states =
      model->prefill({tokens(5000, 2)}, {start}, Positions::last, logits.data(), [&] { return ++asked == 10; });
  CHECK(states.empty() && asked == 10, "asked %d times", asked);
  CHECK(steps(*model, start, {5}) == expected, "the state before");
}

}  // namespace ssmquant::tests
