// `Layer`: one residual block, and what the mixers share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/linear.hpp"
#include "engine/state.hpp"
#include "runtime/thread_pool.hpp"

namespace ssmquant {

// Tokens of one sequence that go through the model together. A span of one token is a step, whatever else is in its block; a
// longer one is a piece of a prefill.
struct Span {
  const SequenceState* before;  // read
  const SequenceState* after;   // written; the same as `before` for the later pieces of a prefill
  Epoch* pending;               // whose pending tokens are read and added to, once those of `before` are there
  int64_t position;             // tokens before it
  int64_t row;                  // of its first token, among the block's rows
  int64_t tokens;
};

// Memory for what is needed only for a moment.
class Scratch {
 public:
  // Memory of at least so many elements until the next call, aligned to 64 bytes.
  template <class T>
  T* of(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (buffer_.size() < bytes) buffer_ = Buffer(bytes);
    return buffer_.as<T>();
  }

 private:
  Buffer buffer_;
};

// What the layers work on: the rows of one block.
struct Block {
  int64_t rows = 0;
  std::vector<Span> steps, pieces;
  float* residual = nullptr;         // [rows, d_model]
  float* scanned = nullptr;          // [rows, d_inner]
  float* selected_floats = nullptr;  // [rows, x_proj], Mamba-1, before it is normalised
  // Memory of rows that are codes or floats, as the layer has it.
  uint8_t* normed = nullptr;     // [rows, d_model]
  uint8_t* projected = nullptr;  // [rows, in_proj]
  uint8_t* convolved = nullptr;  // [rows, channels of the convolution]
  uint8_t* selected = nullptr;   // [rows, x_proj], Mamba-1
  uint8_t* dt = nullptr;         // [rows, d_inner], Mamba-1
  uint8_t* gated = nullptr;      // [rows, d_inner]
  Scratch scratch;
};

struct Norm {
  std::vector<float> weight;
  float eps = 0.0f;
  Sites sites;

  int64_t channels() const { return static_cast<int64_t>(weight.size()); }
  // Rows of x, [rows, channels], as the sites have them.
  Rows run(ThreadPool& pool, float* x, int64_t rows, uint8_t* out) const;
};

// Causal convolution.
struct Convolution {
  int64_t channels = 0, taps = 0;
  bool takes_codes = false;
  std::vector<int8_t> codes;  // [taps, channels], or none
  std::vector<float> floats;  // the same where there are no codes
  Factors scale;              // of codes that come in: x_scale * weight_scale where they meet codes, else x_scale
  std::vector<float> bias;    // [channels], or empty
  Sites sites;

  // Some tokens of a sequence for channels [first, last): rows of x, behind taps - 1 rows of those before them.
  void run(const Rows& x, int64_t tokens, int64_t first, int64_t last, const Rows& out) const;
};

// The Hadamard transform before out_proj, or none.
struct Transform {
  bool wanted = false;
  int64_t m = 1;
  std::vector<float> base;  // [m, m]

  Hadamard kernel() const { return {wanted, m, base.empty() ? nullptr : base.data()}; }
};

// Bytes of a layer's rows, for the buffers of a block.
struct Widths {
  int64_t normed, projected, convolved, selected, selected_floats, dt, scanned, gated;
};

// residual += out_proj(mixer(norm(residual)))
class Layer {
 public:
  virtual ~Layer() = default;

  // `next` is the product after this layer's last one.
  void run(ThreadPool& pool, Block& block, const PackedLinear& next) const;

  // The layer's first product.
  const PackedLinear& first() const { return *in_proj_; }

  // Adds this layer's memory to a layout.
  void lay_out(StateLayout& layout);

  // Fills the pending tokens of a state from what the scan read, rows of x, B and dt.
  void restore(ThreadPool& pool, const SequenceState& state, const uint8_t* x, const uint8_t* B, const uint8_t* dt) const;

  // Makes the rounding that is due after a state's tokens, from its epoch to another, which may be the same. Layers that round
  // as they scan have none. work: round_floats.
  virtual void round(ThreadPool&, const SequenceState&, Epoch&, float*) const {}
  virtual int64_t round_floats(const ThreadPool&) const { return 0; }

  virtual Widths widths() const;
  virtual int64_t bytes() const;

 protected:
  using Weights = std::shared_ptr<const PackedLinear>;

  Layer(Norm norm, Weights in_proj, Convolution conv, Weights out_proj);

  // The recurrent state and its pending tokens.
  virtual LayerLayout lay_out_scan(StateLayout& layout) const = 0;
  // The product after in_proj.
  virtual const PackedLinear& after_in_proj() const { return *out_proj_; }
  // From block.projected to block.gated.
  virtual void mix(ThreadPool& pool, Block& block) const = 0;
  // Scans tokens that do not reach a rounding for what is kept of them alone; rows as for `restore`.
  virtual void rescan(ThreadPool& pool, const Span& span, const uint8_t* x, const uint8_t* B, const uint8_t* dt) const = 0;

  // A block's rows, as this layer has them.
  Rows projected(const Block& block) const { return {block.projected, conv_.takes_codes, in_proj_->outputs()}; }
  Rows convolved(const Block& block) const { return {block.convolved, conv_.sites.codes(), conv_.channels}; }
  Rows gated(const Block& block) const { return {block.gated, out_proj_->takes_codes(), out_proj_->inputs()}; }

  // The convolution of all pieces, whose inputs begin at column `offset` of block.projected.
  void convolve_pieces(ThreadPool& pool, Block& block, int64_t offset) const;
  // Puts the input of a step behind the newest inputs before it, channels [first, last), and returns where all of it is.
  Rows enter_window(const Block& block, const Span& span, int64_t offset, int64_t first, int64_t last) const;

  // Keeps dt, rows `stride` bytes apart, of the tokens that are pending after a span: the scan keeps what it makes of it, a
  // saved state needs itself.
  void keep_dt(const Span& span, const uint8_t* dt, int64_t stride) const;

  int64_t pending(const Span& span) const { return memory_.interval ? span.position % memory_.interval : 0; }
  // Whether a span's end is behind a rounding of the state.
  bool rounds(const Span& span) const { return pending(span) + span.tokens >= memory_.interval; }

  const uint8_t* state_before(const Span& span) const { return span.before->moment->epoch->data.data() + memory_.state.offset; }
  uint8_t* state_after(const Span& span) const { return span.after->moment->epoch->data.data() + memory_.state.offset; }
  uint8_t* pending_of(const Span& span, size_t array) const {
    return span.pending->data.data() + memory_.pending[array].offset;
  }
  // Copy what a span keeps to where it will be, unless it is there: parts [first, last) of the state, bytes [begin, end) of
  // each; and so for an array of pending tokens.
  void carry_state(const Span& span, int64_t first, int64_t last, int64_t begin, int64_t end) const;
  void carry_pending(const Span& span, size_t array, int64_t first, int64_t last, int64_t begin, int64_t end) const;

  Norm norm_;
  Weights in_proj_;
  Convolution conv_;
  Weights out_proj_;
  LayerLayout memory_;
};

// Parts to cut `items` into for the pool: enough that no thread waits long for another, and no more than there are items.
inline int64_t cuts(const ThreadPool& pool, int64_t items) {
  const int64_t wanted = pool.size() > 1 ? 4 * pool.size() : 1;
  return items < wanted ? items : wanted;
}

// Bounds of part i of n of `items`, multiples of `unit`.
inline int64_t bound(int64_t items, int64_t i, int64_t n, int64_t unit = 1) {
  const int64_t units = (items + unit - 1) / unit;
  const int64_t at = units * i / n * unit;
  return at < items ? at : items;
}

}  // namespace ssmquant
