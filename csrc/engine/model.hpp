// `Model`: the layers of a language model and its head, and how tokens go through them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/layer.hpp"
#include "engine/linear.hpp"
#include "engine/state.hpp"
#include "runtime/thread_pool.hpp"

namespace ssmquant {

// Token vectors: codes, float16 or float32, one of them set; none: the packed weight of the head.
struct Embedding {
  const int8_t* codes = nullptr;
  const uint8_t* int4 = nullptr;      // two codes a byte
  const uint16_t* halves = nullptr;
  const float* floats = nullptr;
  Factors scale;                      // of codes; of int4, [vocab, groups]
  int64_t group = 0;                  // of int4
  std::shared_ptr<const void> owner;  // of the table
};

// Positions whose logits are wanted: the last of each prompt, or all.
enum class Positions { last, all };

class Model {
 public:
  Model(int64_t d_model, Embedding embedding, std::vector<std::shared_ptr<Layer>> layers, Norm final_norm,
        std::shared_ptr<const PackedLinear> head, std::shared_ptr<ThreadPool> pool);
  ~Model();

  int64_t vocab() const { return head_->outputs(); }
  int64_t bytes() const;
  ThreadPool& pool() const { return *pool_; }
  const StateFactory& states() const { return states_; }

  // Reads prompts, each from a state on (an empty one: from the start), and returns the states after them. logits: [prompts, vocab], or, of all positions,
  // [tokens of all prompts, vocab]. `interrupted` is called often, on the caller's thread; where it returns true, the result
  // is empty.
  std::vector<SequenceState> prefill(const std::vector<std::vector<int64_t>>& prompts,
                                     const std::vector<SequenceState>& states, Positions positions, float* logits,
                                     const std::function<bool()>& interrupted) const;

  // Reads one more token of each sequence and returns the states after it. logits: [tokens, vocab].
  std::vector<SequenceState> step(const std::vector<int64_t>& tokens, const std::vector<SequenceState>& states,
                                  float* logits) const;

  // What a state holds of a layer, byte for byte: the window, the recurrent state and the arrays of pending tokens.
  struct Memory {
    const uint8_t* data;
    int64_t bytes;
  };
  Memory window(const SequenceState& state, int64_t layer) const;
  Memory recurrent(const SequenceState& state, int64_t layer) const;
  Memory pending(const SequenceState& state, int64_t layer, int64_t array) const;

  // A layer's part of a saved state: window and recurrent state as above, and rows of the pending tokens.
  struct Saved {
    Memory window, recurrent, x, B, dt;
  };
  // The state of a sequence of so many tokens. Throws std::invalid_argument if a part has another size.
  SequenceState restore(int64_t tokens, const std::vector<Saved>& layers) const;

 private:
  struct Workspace;
  class Lease;

  // Makes a rounding that is due: what a state holds of its position is the state after it.
  void settle(const SequenceState& state) const;
  bool forward(Workspace& work, const std::function<bool()>& interrupted) const;
  void embed(const int64_t* ids, int64_t rows, float* out) const;
  // The logits of rows of the residual stream.
  void write_logits(Workspace& work, float* hidden, int64_t rows, float* logits) const;

  const int64_t d_model_;
  const Embedding embedding_;
  const std::vector<std::shared_ptr<Layer>> layers_;
  const Norm final_norm_;
  const std::shared_ptr<const PackedLinear> head_;
  const std::shared_ptr<ThreadPool> pool_;
  const StateFactory states_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;  // each in use by one call
};

}  // namespace ssmquant
