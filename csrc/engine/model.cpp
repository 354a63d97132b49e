#include "engine/model.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace ssmquant {

namespace {

// Tokens that go through the model together: enough for the products to be limited by arithmetic, and few enough for a
// block's activations to stay near the processor.
constexpr int64_t kBlockTokens = 512;
// A prompt is cut only at multiples of it (as the prompt counts, with its pending tokens), where a scan ends a chunk anyway:
// so a prompt gives the same result whatever else is in its block.
constexpr int64_t kCut = 64;
constexpr size_t kIdle = 4;  // workspaces kept for the next calls

StateLayout lay_out(const std::vector<std::shared_ptr<Layer>>& layers) {
  StateLayout layout;
  for (const std::shared_ptr<Layer>& layer : layers) layer->lay_out(layout);
  return layout;
}

// float16 to float32.
void widen(const uint16_t* halves, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t sign = (halves[i] & 0x8000u) << 16, exponent = halves[i] >> 10 & 31u, fraction = halves[i] & 1023u;
    uint32_t bits;
    if (exponent == 0) {
      const float small = static_cast<float>(fraction) * 0x1p-24f;
      std::memcpy(&bits, &small, sizeof(bits));
    } else {
      bits = (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
    }
    bits |= sign;
    std::memcpy(out + i, &bits, sizeof(bits));
  }
}

}  // namespace

// The buffers of a block, for up to `capacity` rows.
struct Model::Workspace {
  // normed_bytes: of a row of the final norm.
  Workspace(int64_t rows, int64_t d_model, int64_t normed_bytes, const std::vector<std::shared_ptr<Layer>>& layers)
      : capacity(rows) {
    Widths most{normed_bytes, 0, 0, 0, 0, 0, 0, 0};
    for (const std::shared_ptr<Layer>& layer : layers) {
      const Widths widths = layer->widths();
      for (int64_t Widths::*part : {&Widths::normed, &Widths::projected, &Widths::convolved, &Widths::selected,
                                    &Widths::selected_floats, &Widths::dt, &Widths::scanned, &Widths::gated}) {
        most.*part = std::max(most.*part, widths.*part);
      }
    }
    block.residual = of<float>(rows * d_model * static_cast<int64_t>(sizeof(float)));
    block.scanned = of<float>(rows * most.scanned);
    block.selected_floats = of<float>(rows * most.selected_floats);
    block.normed = of<uint8_t>(rows * most.normed);
    block.projected = of<uint8_t>(rows * most.projected);
    block.convolved = of<uint8_t>(rows * most.convolved);
    block.selected = of<uint8_t>(rows * most.selected);
    block.dt = of<uint8_t>(rows * most.dt);
    block.gated = of<uint8_t>(rows * most.gated);
  }

  template <class T>
  T* of(int64_t bytes) {
    buffers.emplace_back(bytes + linear_overread);
    return buffers.back().as<T>();
  }

  const int64_t capacity;
  std::vector<Buffer> buffers;
  Block block;
  std::vector<int64_t> ids;
};

// A workspace for the time of a call.
class Model::Lease {
 public:
  Lease(const Model& model, int64_t rows) : model_(model) {
    {
      std::lock_guard<std::mutex> lock(model.mutex_);
      for (auto it = model.idle_.rbegin(); it != model.idle_.rend() && !work_; ++it) {
        if ((*it)->capacity < rows) continue;
        work_ = std::move(*it);
        model.idle_.erase(std::next(it).base());
        break;
      }
    }
    if (work_) return;
    const int64_t normed_bytes = channel_bytes(model.final_norm_.sites.codes(), model.d_model_);
    work_ = std::make_unique<Workspace>(rows, model.d_model_, normed_bytes, model.layers_);
  }

  ~Lease() {
    std::lock_guard<std::mutex> lock(model_.mutex_);
    if (model_.idle_.size() == kIdle) model_.idle_.erase(model_.idle_.begin());
    model_.idle_.push_back(std::move(work_));
  }

  Workspace& operator*() { return *work_; }

 private:
  const Model& model_;
  std::unique_ptr<Workspace> work_;
};

Model::Model(int64_t d_model, Embedding embedding, std::vector<std::shared_ptr<Layer>> layers, Norm final_norm,
             std::shared_ptr<const PackedLinear> head, std::shared_ptr<ThreadPool> pool)
    : d_model_(d_model),
      embedding_(std::move(embedding)),
      layers_(std::move(layers)),
      final_norm_(std::move(final_norm)),
      head_(std::move(head)),
      pool_(std::move(pool)),
      states_(lay_out(layers_)) {}

Model::~Model() = default;

int64_t Model::bytes() const {
  int64_t sum = head_->bytes();
  for (const std::shared_ptr<Layer>& layer : layers_) sum += layer->bytes();
  return sum;
}

std::vector<SequenceState> Model::prefill(const std::vector<std::vector<int64_t>>& prompts,
                                          const std::vector<SequenceState>& states, Positions positions, float* logits,
                                          const std::function<bool()>& interrupted) const {
  const size_t count = prompts.size();
  std::vector<int64_t> done(count, 0), offset(count, 0);
  int64_t all = 0;
  for (size_t i = 0; i < count; ++i) {
    offset[i] = all;
    all += static_cast<int64_t>(prompts[i].size());
  }
  std::vector<SequenceState> before = states, after(count);
  Lease lease(*this, std::min(all, kBlockTokens));
  Workspace& work = *lease;
  Block& block = work.block;
  Buffer last(positions == Positions::last ? static_cast<int64_t>(count) * d_model_ * static_cast<int64_t>(sizeof(float)) : 0);
  for (size_t next = 0; next < count;) {
    // Fill a block with tokens of the prompts in their order.
    struct Part {
      size_t prompt;
      int64_t row, tokens;
    };
    std::vector<Part> parts;
    block.rows = 0;
    block.steps.clear();
    block.pieces.clear();
    work.ids.clear();
    for (size_t i = next; i < count && block.rows < work.capacity; ++i) {
      const int64_t left = static_cast<int64_t>(prompts[i].size()) - done[i], room = work.capacity - block.rows;
      int64_t tokens = left;
      if (left > room) {
        const int64_t position = before[i].tokens;
        tokens = (position % kCut + room) / kCut * kCut - position % kCut;
        if (tokens <= 0) break;
      }
      if (!after[i].moment) {
        if (before[i].moment) settle(before[i]);
        after[i] = before[i].moment ? states_.make(before[i].tokens) : states_.start();
        if (!before[i].moment) before[i] = after[i];
      }
      const Span span{&before[i], &after[i], after[i].moment->epoch.get(), before[i].tokens, block.rows, tokens};
      (tokens == 1 ? block.steps : block.pieces).push_back(span);
      const int64_t* ids = prompts[i].data() + done[i];
      work.ids.insert(work.ids.end(), ids, ids + tokens);
      parts.push_back({i, block.rows, tokens});
      block.rows += tokens;
      if (tokens < left) break;
    }
    if (!forward(work, interrupted)) return {};
    for (const Part& part : parts) {
      const size_t i = part.prompt;
      float* hidden = block.residual + part.row * d_model_;
      if (positions == Positions::all) {
        write_logits(work, hidden, part.tokens, logits + (offset[i] + done[i]) * vocab());
      }
      done[i] += part.tokens;
      states_.advance(after[i], part.tokens);
      settle(after[i]);
      before[i] = after[i];
      if (done[i] < static_cast<int64_t>(prompts[i].size())) continue;
      next = i + 1;
      if (positions == Positions::last) {
        std::memcpy(last.as<float>() + static_cast<int64_t>(i) * d_model_, hidden + (part.tokens - 1) * d_model_,
                    static_cast<size_t>(d_model_) * sizeof(float));
      }
    }
  }
  for (int64_t row = 0; positions == Positions::last && row < static_cast<int64_t>(count); row += work.capacity) {
    const int64_t rows = std::min(work.capacity, static_cast<int64_t>(count) - row);
    write_logits(work, last.as<float>() + row * d_model_, rows, logits + row * vocab());
  }
  return after;
}

std::vector<SequenceState> Model::step(const std::vector<int64_t>& tokens, const std::vector<SequenceState>& states,
                                       float* logits) const {
  const int64_t rows = static_cast<int64_t>(tokens.size());
  Lease lease(*this, rows);
  Workspace& work = *lease;
  for (const SequenceState& state : states) settle(state);
  std::vector<Successor> successors;
  successors.reserve(states.size());
  for (const SequenceState& state : states) successors.push_back(states_.successor(state));
  work.ids = tokens;
  work.block.rows = rows;
  work.block.steps.clear();
  work.block.pieces.clear();
  for (size_t i = 0; i < states.size(); ++i) {
    work.block.steps.push_back({&states[i], &successors[i].state, successors[i].pending.get(), states[i].tokens,
                                static_cast<int64_t>(i), 1});
  }
  forward(work, nullptr);
  write_logits(work, work.block.residual, rows, logits);
  std::vector<SequenceState> after;
  after.reserve(states.size());
  for (Successor& successor : successors) after.push_back(std::move(successor.state));
  for (const SequenceState& state : after) {
    if (!states_.rounds_later()) settle(state);
  }
  return after;
}

Model::Memory Model::window(const SequenceState& state, int64_t layer) const {
  const LayerLayout& memory = states_.layout().layers[static_cast<size_t>(layer)];
  return {state.moment->window.data() + memory.window, memory.window_bytes};
}

Model::Memory Model::recurrent(const SequenceState& state, int64_t layer) const {
  const Array& array = states_.layout().layers[static_cast<size_t>(layer)].state;
  settle(state);
  return {state.moment->epoch->data.data() + array.offset, array.parts * array.bytes};
}

Model::Memory Model::pending(const SequenceState& state, int64_t layer, int64_t array) const {
  const Array& tokens = states_.layout().layers[static_cast<size_t>(layer)].pending[static_cast<size_t>(array)];
  settle(state);
  return {state.moment->epoch->data.data() + tokens.offset, tokens.parts * tokens.bytes};
}

SequenceState Model::restore(int64_t tokens, const std::vector<Saved>& layers) const {
  const auto copy = [](const Memory& from, const Memory& to) {
    if (from.bytes != to.bytes) throw std::invalid_argument("a part of the state has another size");
    std::memcpy(const_cast<uint8_t*>(to.data), from.data, static_cast<size_t>(to.bytes));
  };
  if (layers.size() != layers_.size()) throw std::invalid_argument("the state has another number of layers");
  SequenceState state = states_.make(tokens);
  for (size_t i = 0; i < layers.size(); ++i) {
    const Saved& saved = layers[i];
    copy(saved.window, window(state, static_cast<int64_t>(i)));
    copy(saved.recurrent, recurrent(state, static_cast<int64_t>(i)));
    const LayerLayout& memory = states_.layout().layers[i];
    const int64_t count = memory.interval ? tokens % memory.interval : 0;
    const Memory* rows[] = {&saved.x, &saved.B, &saved.dt};
    for (size_t array = 0; count && array < LayerLayout::others; ++array) {
      const Array& all = memory.pending[array];
      if (rows[array]->bytes != all.parts * all.bytes / memory.interval * count) {
        throw std::invalid_argument("the pending tokens of the state have another size");
      }
    }
    layers_[i]->restore(*pool_, state, saved.x.data, saved.B.data, saved.dt.data);
  }
  return state;
}

void Model::settle(const SequenceState& state) const {
  Moment& moment = *state.moment;
  std::lock_guard<std::mutex> lock(moment.mutex);
  if (!moment.due) return;
  int64_t floats = 0;
  for (const std::shared_ptr<Layer>& layer : layers_) floats = std::max(floats, layer->round_floats(*pool_));
  // All memory at first: a state that is half rounded is none.
  Buffer work(floats * static_cast<int64_t>(sizeof(float)));
  const std::shared_ptr<Epoch> rounded = states_.rounded(moment);
  for (const std::shared_ptr<Layer>& layer : layers_) layer->round(*pool_, state, *rounded, work.as<float>());
  states_.settle(moment, rounded);
}

bool Model::forward(Workspace& work, const std::function<bool()>& interrupted) const {
  embed(work.ids.data(), work.block.rows, work.block.residual);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (interrupted && interrupted()) return false;
    layers_[i]->run(*pool_, work.block, i + 1 < layers_.size() ? layers_[i + 1]->first() : *head_);
  }
  return true;
}

void Model::embed(const int64_t* ids, int64_t rows, float* out) const {
  if (embedding_.codes) {
    kernels().linear.embed(embedding_.codes, d_model_, embedding_.scale.scale(), ids, rows, out);
  } else if (embedding_.int4) {
    kernels().linear.embed_int4(embedding_.int4, embedding_.scale.values.data(), d_model_, embedding_.group, ids, rows, out);
  } else if (embedding_.floats || embedding_.halves) {
    for (int64_t row = 0; row < rows; ++row, out += d_model_) {
      if (embedding_.floats) {
        std::memcpy(out, embedding_.floats + ids[row] * d_model_, static_cast<size_t>(d_model_) * sizeof(float));
      } else {
        widen(embedding_.halves + ids[row] * d_model_, d_model_, out);
      }
    }
  } else {
    kernels().linear.embed_packed(head_->weight(), head_->weight_scale().scale(), ids, rows, out);
  }
}

void Model::write_logits(Workspace& work, float* hidden, int64_t rows, float* logits) const {
  const Rows normed = final_norm_.run(*pool_, hidden, rows, work.block.normed);
  const PackedLinear& next = layers_.empty() ? *head_ : layers_.front()->first();  // of the next token
  multiply(*pool_, head_->to_floats(normed, rows, logits, vocab()), next);
}

}  // namespace ssmquant
