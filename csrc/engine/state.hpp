// What the model remembers of a sequence, as an immutable value.
//
// A `SequenceState` is an epoch, a window and a position. The epoch is the recurrent state at its last rounding, with the
// tokens since then ("pending") behind it, of all layers; the window is the newest inputs of the convolutions. A step reads the
// recurrent state and only adds a token behind the pending ones, where no older value looks. So it shares its predecessor's
// epoch, and stepping, forking and keeping old values cost next to nothing. When the place behind the pending tokens is taken
// (an older value was stepped a second time), the step copies the epoch first.
//
// Pending tokens that fill an interval make a rounding due. It waits until somebody wants more of the sequence: by then the
// values before it, which need the state as it was, are mostly gone, and the new state takes the old one's place.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/kernels.hpp"
#include "runtime/buffer.hpp"

namespace ssmquant {

// An array of a layer in an epoch: `parts` equal parts (heads, say) of `bytes` each.
struct Array {
  int64_t offset = 0;
  int64_t parts = 0;
  int64_t bytes = 0;
};

// Where a layer keeps what it remembers.
struct LayerLayout {
  int64_t interval = 0;     // tokens between two roundings; 0 for a float32 state
  bool rounds_later = false;   // a step leaves the rounding that it makes due to Layer::round
  Array state;              // by head, or for Mamba-1 by column
  // Of pending tokens: x, B and dt as the scan read them, then what only the mixer knows.
  std::vector<Array> pending;
  enum : size_t { x_inputs, B_inputs, dt_inputs, others };
  int64_t window = 0;          // offset in the window
  int64_t window_bytes = 0;
};

// Offsets of all layers.
class StateLayout {
 public:
  // Each returns an array behind the others; offsets are multiples of 64.
  Array in_epoch(int64_t parts, int64_t bytes);
  int64_t in_window(int64_t bytes);

  std::vector<LayerLayout> layers;
  int64_t epoch_bytes = 0;
  int64_t window_bytes = 0;

  // Tokens after which every layer rounds its state; 0 if they differ or one changes its state at every token.
  int64_t common_interval() const;
  // Whether a step to so many tokens leaves a rounding to be made.
  bool due(int64_t tokens) const;
};

class BufferPool;

struct Epoch {
  Buffer data;
  std::atomic<int64_t> claimed{0};  // tokens that have a place in it
  std::atomic<int64_t> moments{0};  // that are of it
};

// What copies of a SequenceState share.
struct Moment {
  Buffer window;
  std::shared_ptr<Epoch> epoch;
  bool due = false;  // a rounding
  std::mutex mutex;  // of the two above; what is not due never is again
};

struct SequenceState {
  std::shared_ptr<Moment> moment;
  int64_t tokens = 0;
};

// A step's target.
struct Successor {
  SequenceState state;
  std::shared_ptr<Epoch> pending;  // where the step finds room for its token: the epoch before it or the one after it
};

// Makes states, from the memory of states that are gone where there is any.
class StateFactory {
 public:
  explicit StateFactory(const StateLayout& layout);

  // Of unknown content.
  SequenceState make(int64_t tokens) const;
  // Before the first token: states and windows are zeros.
  SequenceState start() const;
  // Notes that tokens have been read into a state that nobody else has yet.
  void advance(SequenceState& state, int64_t tokens) const;
  // What a step of one token from `before`, where nothing is due, writes to.
  Successor successor(const SequenceState& before) const;
  // Whether a rounding may stay due: layers that round apart would need both states.
  bool rounds_later() const { return interval_ > 0 && layout_.layers.front().rounds_later; }
  // Where a rounding that is due goes: the epoch itself, unless an older value needs it.
  std::shared_ptr<Epoch> rounded(const Moment& moment) const;
  // Notes that it has been made.
  void settle(Moment& moment, std::shared_ptr<Epoch> rounded) const;

  // Bytes at rest of one sequence at this position.
  int64_t bytes(int64_t tokens) const;

  const StateLayout& layout() const { return layout_; }

 private:
  SequenceState in(std::shared_ptr<Epoch> epoch, int64_t tokens) const;
  std::shared_ptr<Epoch> epoch(int64_t tokens) const;

  const StateLayout layout_;
  const int64_t interval_;
  std::shared_ptr<BufferPool> epochs_, windows_;
};

}  // namespace ssmquant
