#include "engine/layer.hpp"

#include <cstring>
#include <utility>

namespace ssmquant {

namespace {

constexpr int64_t kLineOfCodes = 64;  // channels in a cache line

}  // namespace

Rows Norm::run(ThreadPool& pool, float* x, int64_t rows, uint8_t* out) const {
  const int64_t width = channels(), parts = cuts(pool, rows);
  const Rows normed{out, sites.codes(), width};
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(rows, part, parts), last = bound(rows, part + 1, parts);
    kernels().pointwise.rms_norm(x + first * width, width, nullptr, last - first, width, weight.data(), eps,
                                 normed.from(first).output(sites.reciprocal.scale()));
  });
  sites.round(pool, normed, rows);
  return normed;
}

void Convolution::run(const Rows& x, int64_t tokens, int64_t first, int64_t last, const Rows& out) const {
  const bool integers = !codes.empty();
  const Conv conv{channels, taps, integers ? codes.data() : nullptr, integers ? nullptr : floats.data(), scale.scale(),
                  bias.empty() ? nullptr : bias.data()};
  kernels().conv.run(conv, x.input(scale), tokens, first, last, out.output(sites.reciprocal.scale()));
  sites.round(out, tokens, first, last);
}

Layer::Layer(Norm norm, Weights in_proj, Convolution conv, Weights out_proj)
    : norm_(std::move(norm)), in_proj_(std::move(in_proj)), conv_(std::move(conv)), out_proj_(std::move(out_proj)) {}

void Layer::run(ThreadPool& pool, Block& block, const PackedLinear& next) const {
  const Rows normed = norm_.run(pool, block.residual, block.rows, block.normed), projected = this->projected(block);
  multiply(pool, in_proj_->to_sites(normed, block.rows, projected), after_in_proj());
  in_proj_->sites.round(pool, projected, block.rows);
  mix(pool, block);
  multiply(pool, out_proj_->added_to(gated(block), block.rows, block.residual, norm_.channels()), next);
}

Widths Layer::widths() const {
  const auto bytes = [](bool codes, int64_t channels) { return channel_bytes(codes, channels); };
  return {bytes(norm_.sites.codes(), norm_.channels()),
          bytes(conv_.takes_codes, in_proj_->outputs()),
          bytes(conv_.sites.codes(), conv_.channels),
          0,
          0,
          0,
          bytes(false, out_proj_->inputs()),
          bytes(out_proj_->takes_codes(), out_proj_->inputs())};
}

void Layer::lay_out(StateLayout& layout) {
  memory_ = lay_out_scan(layout);
  memory_.window_bytes = channel_bytes(conv_.takes_codes, conv_.taps * conv_.channels);
  memory_.window = layout.in_window(memory_.window_bytes);
  layout.layers.push_back(memory_);
}

int64_t Layer::bytes() const {
  const size_t floats = norm_.weight.size() + conv_.floats.size() + conv_.bias.size() + conv_.scale.values.size();
  return in_proj_->bytes() + out_proj_->bytes() + static_cast<int64_t>(conv_.codes.size() + sizeof(float) * floats);
}

void Layer::restore(ThreadPool& pool, const SequenceState& state, const uint8_t* x, const uint8_t* B,
                    const uint8_t* dt) const {
  const int64_t count = memory_.interval ? state.tokens % memory_.interval : 0;
  if (!count) return;
  const Span span{&state, &state, state.moment->epoch.get(), state.tokens - count, 0, count};
  keep_dt(span, dt, memory_.pending[LayerLayout::dt_inputs].bytes);
  rescan(pool, span, x, B, dt);
}

void Layer::keep_dt(const Span& span, const uint8_t* dt, int64_t stride) const {
  if (memory_.interval <= 1) return;
  const Array& kept = memory_.pending[LayerLayout::dt_inputs];
  const int64_t before = pending(span), end = before + span.tokens, rounded = end / memory_.interval * memory_.interval;
  for (int64_t place = before > rounded ? before : rounded; place < end; ++place) {
    std::memcpy(pending_of(span, LayerLayout::dt_inputs) + (place - rounded) * kept.bytes, dt + (place - before) * stride,
                static_cast<size_t>(kept.bytes));
  }
}

void Layer::convolve_pieces(ThreadPool& pool, Block& block, int64_t offset) const {
  const int64_t channels = conv_.channels, history = conv_.taps - 1, pieces = static_cast<int64_t>(block.pieces.size());
  const Rows inputs = projected(block).from(0, offset);
  const int64_t row_bytes = inputs.bytes(channels);
  // The first tokens of each piece, in rows behind their history; those after them have it in front of them already.
  const Rows starts{block.scratch.of<uint8_t>(pieces * 2 * history * row_bytes), inputs.codes, channels};
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const Span& span = block.pieces[static_cast<size_t>(piece)];
    const Rows x = inputs.from(span.row), start = starts.from(piece * 2 * history);
    const uint8_t* before = span.before->moment->window.data() + memory_.window;
    std::memcpy(start.data, before + row_bytes, static_cast<size_t>(history * row_bytes));
    for (int64_t t = 0; t < history && t < span.tokens; ++t) {
      std::memcpy(start.from(history + t).data, x.from(t).data, static_cast<size_t>(row_bytes));
    }
    uint8_t* after = span.after->moment->window.data() + memory_.window;
    for (int64_t row = 0; row < conv_.taps; ++row) {
      const int64_t token = span.tokens - conv_.taps + row;
      const Rows newest = token >= 0 ? x.from(token) : start.from(history + token);
      std::memcpy(after + row * row_bytes, newest.data, static_cast<size_t>(row_bytes));
    }
  }
  const int64_t parts = cuts(pool, (channels + kLineOfCodes - 1) / kLineOfCodes);
  pool.run(parts * pieces, [&](int64_t task) {
    const Span& span = block.pieces[static_cast<size_t>(task / parts)];
    const int64_t first = bound(channels, task % parts, parts, kLineOfCodes);
    const int64_t last = bound(channels, task % parts + 1, parts, kLineOfCodes);
    const int64_t started = span.tokens < history ? span.tokens : history;
    const Rows out = convolved(block).from(span.row);
    conv_.run(starts.from((task / parts * 2 + 1) * history), started, first, last, out);
    conv_.run(inputs.from(span.row + started), span.tokens - started, first, last, out.from(started));
  });
}

Rows Layer::enter_window(const Block& block, const Span& span, int64_t offset, int64_t first, int64_t last) const {
  const Rows input = projected(block).from(span.row, offset);
  const Rows before{span.before->moment->window.data() + memory_.window, input.codes, conv_.channels};
  const Rows after{span.after->moment->window.data() + memory_.window, input.codes, conv_.channels};
  const size_t bytes = static_cast<size_t>(input.bytes(last - first));
  for (int64_t row = 0; row + 1 < conv_.taps; ++row) {  // a later piece of a prefill is in place
    std::memcpy(after.from(row, first).data, before.from(row + 1, first).data, bytes);
  }
  std::memcpy(after.from(conv_.taps - 1, first).data, input.from(0, first).data, bytes);
  return after.from(conv_.taps - 1);
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
  if (state_before(span) == state_after(span)) return;
  copy_parts(memory_.state, state_before(span), state_after(span), first, last, begin, end);
}

void Layer::carry_pending(const Span& span, size_t array, int64_t first, int64_t last, int64_t begin, int64_t end) const {
  if (span.before->moment->epoch.get() == span.pending) return;
  const Array& tokens = memory_.pending[array];
  copy_parts(tokens, span.before->moment->epoch->data.data() + tokens.offset, pending_of(span, array), first, last, begin, end);
}

}  // namespace ssmquant
