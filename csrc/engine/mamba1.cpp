#include "engine/mamba1.hpp"

#include <utility>

namespace ssmquant {

namespace {

// Arrays of pending tokens.
enum : size_t {
  kX = LayerLayout::x_inputs,          // [interval, channels]
  kB = LayerLayout::B_inputs,          // [interval, d_state]
  kDtInputs = LayerLayout::dt_inputs,  // [interval, channels]
  kDt = LayerLayout::others            // [interval, channels]
};

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kChannels = 64;  // ranges of channels are multiples

// So many floats in whole cache lines.
int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

Mamba1Layer::Mamba1Layer(Norm norm, Weights in_proj, Convolution conv, Weights x_proj, Weights dt_proj,
                         Mamba1Constants constants, Weights out_proj)
    : Layer(std::move(norm), std::move(in_proj), std::move(conv), std::move(out_proj)),
      x_proj_(std::move(x_proj)),
      dt_proj_(std::move(dt_proj)),
      c_(std::move(constants)) {
  const int64_t per_channel = c_.state_scale.size() > 1 ? 1 : 0;
  scan_ = {conv_.channels, c_.d_state, c_.A.data(), c_.D.data(), c_.dt_bias.data(), c_.state_type, c_.interval,
           c_.state_scale.data(), 0, per_channel};
}

Widths Mamba1Layer::widths() const {
  Widths widths = Layer::widths();
  widths.selected = channel_bytes(c_.selected.codes(), x_proj_->outputs());
  widths.selected_floats = channel_bytes(false, x_proj_->outputs());
  widths.dt = channel_bytes(dt_proj_->sites.codes(), conv_.channels);
  return widths;
}

int64_t Mamba1Layer::bytes() const {
  return Layer::bytes() + x_proj_->bytes() + dt_proj_->bytes() + kFloat * static_cast<int64_t>(c_.A.size());
}

LayerLayout Mamba1Layer::lay_out_scan(StateLayout& layout) const {
  const int64_t channels = conv_.channels, kept = c_.interval > 1 ? c_.interval : 0;
  LayerLayout memory;
  memory.interval = c_.interval;
  memory.state = layout.in_epoch(c_.d_state, channels * element_bytes(c_.state_type));
  memory.pending = {layout.in_epoch(kept, channel_bytes(conv_.sites.codes(), channels)),
                    layout.in_epoch(kept, channel_bytes(c_.selected.codes(), c_.d_state)),
                    layout.in_epoch(kept, channel_bytes(dt_proj_->sites.codes(), channels)),
                    layout.in_epoch(kept, channels * kFloat)};
  return memory;
}

void Mamba1Layer::mix(ThreadPool& pool, Block& block) const {
  const int64_t channels = conv_.channels;
  convolve_steps(pool, block);
  if (!block.pieces.empty()) convolve_pieces(pool, block, 0);
  select(pool, block);
  scan(pool, block);
  const int64_t parts = cuts(pool, block.rows);
  const Rows gated = this->gated(block);
  float* work = block.scratch.of<float>(parts * channels);
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(block.rows, part, parts), last = bound(block.rows, part + 1, parts);
    kernels().pointwise.gate(block.scanned + first * channels, projected(block).from(first, channels).input(c_.z_scale),
                             last - first, channels, c_.transform.kernel(), work + part * channels,
                             gated.from(first).output(c_.y.reciprocal.scale()));
  });
  c_.y.round(pool, gated, block.rows);
}

void Mamba1Layer::convolve_steps(ThreadPool& pool, Block& block) const {
  const int64_t rows = static_cast<int64_t>(block.steps.size());
  const int64_t rows_at_once = rows < 4 ? rows : 1;  // less work than waking a thread, for few rows
  if (!rows) return;
  pool.run((rows + rows_at_once - 1) / rows_at_once, [&](int64_t task) {
    for (int64_t row = task * rows_at_once; row < rows && row < (task + 1) * rows_at_once; ++row) {
      const Span& span = block.steps[static_cast<size_t>(row)];
      conv_.run(enter_window(block, span, 0, 0, conv_.channels), 1, 0, conv_.channels, convolved(block).from(span.row));
    }
  });
}

void Mamba1Layer::select(ThreadPool& pool, Block& block) const {
  const int64_t width = x_proj_->outputs();
  const Rows out = selected(block);
  if (c_.select_eps < 0.0f) {
    multiply(pool, x_proj_->to_sites(convolved(block), block.rows, out), *out_proj_);
    c_.selected.round(pool, out, block.rows);
    return;
  }
  multiply(pool, x_proj_->to_floats(convolved(block), block.rows, block.selected_floats, width), *out_proj_);
  const int64_t parts = cuts(pool, block.rows);
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(block.rows, part, parts), rows = bound(block.rows, part + 1, parts) - first;
    const auto normalise = [&](int64_t column, int64_t count) {
      kernels().pointwise.rms_norm(block.selected_floats + first * width + column, width, nullptr, rows, count, nullptr,
                                   c_.select_eps, out.from(first, column).output(c_.selected.reciprocal.from(column)));
    };
    normalise(0, c_.dt_rank);
    normalise(c_.dt_rank, c_.d_state);
    normalise(c_.dt_rank + c_.d_state, c_.d_state);
  });
  c_.selected.round(pool, out, block.rows);
}

void Mamba1Layer::scan(ThreadPool& pool, Block& block) const {
  const ScanKernels& kernel = kernels().selective_scan;
  const int64_t channels = conv_.channels, panel = kernels().linear.panel, step = panel > kChannels ? panel : kChannels;
  const int64_t parts = cuts(pool, (channels + step - 1) / step);
  std::vector<const Span*> spans;
  for (const Span& span : block.steps) spans.push_back(&span);
  for (const Span& span : block.pieces) spans.push_back(&span);
  const Rows dt = this->dt(block);
  const Product product = dt_proj_->to_sites(selected(block), block.rows, dt);
  // One row's dt_proj is done with the scan that reads it, range by range; many rows' is a product of its own.
  const bool together = block.rows == 1;
  if (!together) {
    multiply(pool, product, *out_proj_);
    dt_proj_->sites.round(pool, dt, block.rows);
  }
  for (const Span* span : spans) {
    carry_pending(*span, kB, 0, pending(*span), 0, memory_.pending[kB].bytes);
    carry_pending(*span, kDtInputs, 0, pending(*span), 0, memory_.pending[kDtInputs].bytes);
  }
  const int64_t work_floats = lines(kernel.work_floats(scan_, (channels / parts / step + 1) * step));
  float* work = block.scratch.of<float>(parts * static_cast<int64_t>(spans.size()) * work_floats);
  pool.run(parts * static_cast<int64_t>(spans.size()), [&](int64_t task) {
    const Span& span = *spans[static_cast<size_t>(task / parts)];
    const int64_t first = bound(channels, task % parts, parts, step), last = bound(channels, task % parts + 1, parts, step);
    if (together) {
      for (int64_t at = first / panel; at * panel < last; ++at) product.run({0, 1, 1}, at);
      dt_proj_->sites.round(dt, 1, first, last);
    }
    carry_channels(span, first, last);
    kernel.run(scan_, sequence(span), inputs(block, span), first, last, work + task * work_floats,
               block.scanned + span.row * channels, channels);
  });
  for (const Span* span : spans) {
    kernel.finish(scan_, sequence(*span), inputs(block, *span));
    keep_dt(*span, dt.from(span->row).data, dt.bytes(channels));
  }
}

void Mamba1Layer::rescan(ThreadPool&, const Span& span, const uint8_t* x, const uint8_t* B, const uint8_t* dt) const {
  const ScanKernels& kernel = kernels().selective_scan;
  const int64_t channels = conv_.channels;
  const Input B_rows = input_of(B, c_.selected.codes(), c_.B_scale.scale(), c_.d_state);
  const ScanInputs tokens{input_of(x, conv_.sites.codes(), c_.x_scale.scale(), channels),
                          input_of(dt, dt_proj_->sites.codes(), c_.dt_scale.scale(), channels), B_rows, B_rows,
                          span.tokens};  // y, which C gives, is not wanted
  Buffer work(kernel.work_floats(scan_, channels) * kFloat), y(span.tokens * channels * kFloat);
  kernel.run(scan_, sequence(span), tokens, 0, channels, work.as<float>(), y.as<float>(), channels);
  kernel.finish(scan_, sequence(span), tokens);
}

void Mamba1Layer::carry_channels(const Span& span, int64_t first, int64_t last) const {
  const int64_t element = element_bytes(c_.state_type);
  if (!rounds(span)) carry_state(span, 0, c_.d_state, first * element, last * element);  // else the scan writes all of it
  const bool codes = conv_.sites.codes();
  carry_pending(span, kX, 0, pending(span), channel_bytes(codes, first), channel_bytes(codes, last));
  carry_pending(span, kDt, 0, pending(span), first * kFloat, last * kFloat);
}

ScanSequence Mamba1Layer::sequence(const Span& span) const {
  const void* state = state_before(span);
  void* next = state_after(span);
  if (c_.interval <= 1) return {state, next, nullptr, nullptr, nullptr, 0};
  return {state, next, pending_of(span, kX), pending_of(span, kB), reinterpret_cast<float*>(pending_of(span, kDt)),
          pending(span)};
}

ScanInputs Mamba1Layer::inputs(const Block& block, const Span& span) const {
  const Rows B = selected(block).from(span.row, c_.dt_rank);
  return {convolved(block).from(span.row).input(c_.x_scale), dt(block).from(span.row).input(c_.dt_scale),
          B.input(c_.B_scale), B.from(0, c_.d_state).input(c_.C_scale), span.tokens};
}

}  // namespace ssmquant
