#include "engine/layer.hpp"

#include <cstring>
#include <utility>

namespace ssmquant {

namespace {

constexpr int64_t kLineOfCodes = 64;  // channels in a cache line

}  // namespace

void Norm::run(ThreadPool& pool, float* x, int64_t rows, int8_t* out) const {
  const int64_t width = channels(), parts = cuts(pool, rows);
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(rows, part, parts), last = bound(rows, part + 1, parts);
    const Output codes{out + first * width, nullptr, {&reciprocal, 0}, width};
    kernels().pointwise.rms_norm(x + first * width, width, nullptr, last - first, width, weight.data(), eps, codes);
  });
}

void Convolution::run(const int8_t* x, int64_t x_stride, int64_t tokens, int64_t first, int64_t last, int8_t* out) const {
  const Conv conv{channels, taps, codes.data(), nullptr, scale.scale(), bias.empty() ? nullptr : bias.data()};
  const Input input{x, nullptr, {nullptr, 0}, x_stride};  // its scale is in the convolution's
  kernels().conv.run(conv, input, tokens, first, last, {out, nullptr, reciprocal.scale(), channels});
}

Layer::Layer(Norm norm, Weights in_proj, Convolution conv, Weights out_proj)
    : norm_(std::move(norm)), in_proj_(std::move(in_proj)), conv_(std::move(conv)), out_proj_(std::move(out_proj)) {}

void Layer::run(ThreadPool& pool, Block& block, const PackedLinear& next) const {
  const int64_t d_model = norm_.channels(), width = in_proj_->outputs(), inner = out_proj_->inputs();
  norm_.run(pool, block.residual, block.rows, block.normed);
  multiply(pool, in_proj_->to_codes(block.normed, block.rows, d_model, block.projected, width), after_in_proj());
  mix(pool, block);
  multiply(pool, out_proj_->added_to(block.gated, block.rows, inner, block.residual, d_model), next);
}

void Layer::lay_out(StateLayout& layout) {
  memory_ = lay_out_scan(layout);
  memory_.window_bytes = conv_.taps * conv_.channels;
  memory_.window = layout.in_window(memory_.window_bytes);
  layout.layers.push_back(memory_);
}

int64_t Layer::bytes() const {
  const int64_t floats = norm_.channels() + static_cast<int64_t>(conv_.bias.size() + conv_.scale.values.size());
  return in_proj_->bytes() + out_proj_->bytes() + conv_.taps * conv_.channels + 4 * floats;
}

void Layer::restore(ThreadPool& pool, const SequenceState& state, const int8_t* x, const int8_t* B, const int8_t* dt) const {
  const int64_t count = memory_.interval ? state.tokens % memory_.interval : 0;
  if (!count) return;
  const Span span{&state, &state, state.epoch.get(), state.tokens - count, 0, count};
  keep_dt(span, dt, memory_.pending[LayerLayout::dt_codes].bytes);
  rescan(pool, span, x, B, dt);
}

void Layer::keep_dt(const Span& span, const int8_t* dt, int64_t stride) const {
  if (memory_.interval <= 1) return;
  const Array& kept = memory_.pending[LayerLayout::dt_codes];
  const int64_t before = pending(span), end = before + span.tokens, rounded = end / memory_.interval * memory_.interval;
  for (int64_t place = before > rounded ? before : rounded; place < end; ++place) {
    std::memcpy(pending_of(span, LayerLayout::dt_codes) + (place - rounded) * kept.bytes, dt + (place - before) * stride,
                static_cast<size_t>(kept.bytes));
  }
}

void Layer::convolve_pieces(ThreadPool& pool, Block& block, int64_t offset) const {
  const int64_t width = in_proj_->outputs(), channels = conv_.channels, history = conv_.taps - 1;
  const size_t row_bytes = static_cast<size_t>(channels);
  const int64_t pieces = static_cast<int64_t>(block.pieces.size());
  // The first tokens of each piece, in rows behind their history; those after them have it in front of them already.
  int8_t* starts = block.scratch.of<int8_t>(pieces * 2 * history * channels);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const Span& span = block.pieces[static_cast<size_t>(piece)];
    const int8_t* x = block.projected + span.row * width + offset;
    int8_t* start = starts + piece * 2 * history * channels;
    const uint8_t* before = span.before->window->data() + memory_.window;
    std::memcpy(start, before + channels, static_cast<size_t>(history * channels));
    for (int64_t t = 0; t < history && t < span.tokens; ++t) {
      std::memcpy(start + (history + t) * channels, x + t * width, row_bytes);
    }
    uint8_t* after = span.after->window->data() + memory_.window;
    for (int64_t row = 0; row < conv_.taps; ++row) {
      const int64_t token = span.tokens - conv_.taps + row;
      const int8_t* newest = token >= 0 ? x + token * width : start + (history + token) * channels;
      std::memcpy(after + row * channels, newest, row_bytes);
    }
  }
  const int64_t parts = cuts(pool, (channels + kLineOfCodes - 1) / kLineOfCodes);
  pool.run(parts * pieces, [&](int64_t task) {
    const Span& span = block.pieces[static_cast<size_t>(task / parts)];
    const int64_t first = bound(channels, task % parts, parts, kLineOfCodes);
    const int64_t last = bound(channels, task % parts + 1, parts, kLineOfCodes);
    const int64_t started = span.tokens < history ? span.tokens : history;
    int8_t* out = block.convolved + span.row * channels;
    conv_.run(starts + (task / parts * 2 + 1) * history * channels, channels, started, first, last, out);
    conv_.run(block.projected + (span.row + started) * width + offset, width, span.tokens - started, first, last,
              out + started * channels);
  });
}

const int8_t* Layer::enter_window(const Block& block, const Span& span, int64_t offset) const {
  const int64_t history = (conv_.taps - 1) * conv_.channels;
  const uint8_t* before = span.before->window->data() + memory_.window;
  uint8_t* after = span.after->window->data() + memory_.window;
  std::memmove(after, before + conv_.channels, static_cast<size_t>(history));  // a later piece of a prefill is in place
  std::memcpy(after + history, block.projected + span.row * in_proj_->outputs() + offset, static_cast<size_t>(conv_.channels));
  return reinterpret_cast<const int8_t*>(after + history);
}

namespace {

void copy_parts(const Array& array, const uint8_t* from, uint8_t* to, int64_t first, int64_t last, int64_t begin, int64_t end) {
  if (begin == 0 && end == array.bytes) {  // whole parts follow one another
    std::memcpy(to + first * array.bytes, from + first * array.bytes, static_cast<size_t>((last - first) * array.bytes));
    return;
  }
  for (int64_t part = first; part < last; ++part) {
    std::memcpy(to + part * array.bytes + begin, from + part * array.bytes + begin, static_cast<size_t>(end - begin));
  }
}

}  // namespace

void Layer::carry_state(const Span& span, int64_t first, int64_t last, int64_t begin, int64_t end) const {
  if (span.before->epoch == span.after->epoch || rounds(span)) return;  // a rounding writes all of it
  copy_parts(memory_.state, state_before(span), state_after(span), first, last, begin, end);
}

void Layer::carry_pending(const Span& span, size_t array, int64_t first, int64_t last, int64_t begin, int64_t end) const {
  if (span.before->epoch.get() == span.pending) return;
  const Array& tokens = memory_.pending[array];
  copy_parts(tokens, span.before->epoch->data.data() + tokens.offset, pending_of(span, array), first, last, begin, end);
}

}  // namespace ssmquant
