#include "engine/mamba1.hpp"

#include <utility>

namespace ssmquant {

namespace {

// Arrays of pending tokens.
enum : size_t {
  kX = LayerLayout::x_codes,         // [interval, channels]
  kB = LayerLayout::B_codes,         // [interval, d_state]
  kDtCodes = LayerLayout::dt_codes,  // [interval, channels]
  kDt = LayerLayout::others          // [interval, channels]
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
  return {in_proj_->outputs(), conv_.channels, x_proj_->outputs(), conv_.channels, conv_.channels};
}

int64_t Mamba1Layer::bytes() const {
  return Layer::bytes() + x_proj_->bytes() + dt_proj_->bytes() + kFloat * static_cast<int64_t>(c_.A.size());
}

LayerLayout Mamba1Layer::lay_out_scan(StateLayout& layout) const {
  const int64_t channels = conv_.channels, kept = c_.interval > 1 ? c_.interval : 0;
  LayerLayout memory;
  memory.interval = c_.interval;
  memory.state = layout.in_epoch(c_.d_state, channels * element_bytes(c_.state_type));
  memory.pending = {layout.in_epoch(kept, channels), layout.in_epoch(kept, c_.d_state), layout.in_epoch(kept, channels),
                    layout.in_epoch(kept, channels * kFloat)};
  return memory;
}

void Mamba1Layer::mix(ThreadPool& pool, Block& block) const {
  const int64_t channels = conv_.channels, width = in_proj_->outputs(), selected = x_proj_->outputs();
  convolve_steps(pool, block);
  if (!block.pieces.empty()) convolve_pieces(pool, block, 0);
  select(pool, block);
  const Linear dt = dt_proj_->to_codes(block.selected, block.rows, selected, block.dt, channels);
  scan(pool, block, dt);
  const int64_t parts = cuts(pool, block.rows);
  float* work = block.scratch.of<float>(parts * channels);
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(block.rows, part, parts), last = bound(block.rows, part + 1, parts);
    const Input z{block.projected + first * width + channels, nullptr, c_.z_scale.scale(), width};
    const Output codes{block.gated + first * channels, nullptr, c_.y_reciprocal.scale(), channels};
    kernels().pointwise.gate(block.scanned + first * channels, z, last - first, channels, c_.transform.kernel(),
                             work + part * channels, codes);
  });
}

void Mamba1Layer::convolve_steps(ThreadPool& pool, Block& block) const {
  const int64_t channels = conv_.channels, rows = static_cast<int64_t>(block.steps.size());
  const int64_t rows_at_once = rows < 4 ? rows : 1;  // less work than waking a thread, for few rows
  if (!rows) return;
  pool.run((rows + rows_at_once - 1) / rows_at_once, [&](int64_t task) {
    for (int64_t row = task * rows_at_once; row < rows && row < (task + 1) * rows_at_once; ++row) {
      const Span& span = block.steps[static_cast<size_t>(row)];
      conv_.run(enter_window(block, span, 0), channels, 1, 0, channels, block.convolved + span.row * channels);
    }
  });
}

void Mamba1Layer::select(ThreadPool& pool, Block& block) const {
  const int64_t channels = conv_.channels, width = x_proj_->outputs();
  if (c_.select_eps < 0.0f) {
    multiply(pool, x_proj_->to_codes(block.convolved, block.rows, channels, block.selected, width), *out_proj_);
    return;
  }
  multiply(pool, x_proj_->to_floats(block.convolved, block.rows, channels, block.selected_floats, width), *out_proj_);
  const int64_t parts = cuts(pool, block.rows);
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(block.rows, part, parts), rows = bound(block.rows, part + 1, parts) - first;
    const auto normalise = [&](int64_t column, int64_t count, const Factors& reciprocal) {
      const int64_t at = first * width + column;
      const Output codes{block.selected + at, nullptr, reciprocal.scale(), width};
      kernels().pointwise.rms_norm(block.selected_floats + at, width, nullptr, rows, count, nullptr, c_.select_eps, codes);
    };
    normalise(0, c_.dt_rank, c_.dt_in_reciprocal);
    normalise(c_.dt_rank, c_.d_state, c_.B_reciprocal);
    normalise(c_.dt_rank + c_.d_state, c_.d_state, c_.C_reciprocal);
  });
}

void Mamba1Layer::scan(ThreadPool& pool, Block& block, const Linear& dt) const {
  const LinearKernels& linear = kernels().linear;
  const ScanKernels& kernel = kernels().selective_scan;
  const int64_t channels = conv_.channels;
  const int64_t step = linear.panel > kChannels ? linear.panel : kChannels;
  const int64_t parts = cuts(pool, (channels + step - 1) / step);
  std::vector<const Span*> spans;
  for (const Span& span : block.steps) spans.push_back(&span);
  for (const Span& span : block.pieces) spans.push_back(&span);
  // One row's dt_proj is done with the scan that reads it, range by range; many rows' is a product of its own.
  const bool together = block.rows == 1;
  if (!together) multiply(pool, dt, *out_proj_);
  for (const Span* span : spans) {
    carry_pending(*span, kB, 0, pending(*span), 0, c_.d_state);
    carry_pending(*span, kDtCodes, 0, pending(*span), 0, channels);
  }
  const int64_t work_floats = lines(kernel.work_floats(scan_, (channels / parts / step + 1) * step));
  float* work = block.scratch.of<float>(parts * static_cast<int64_t>(spans.size()) * work_floats);
  pool.run(parts * static_cast<int64_t>(spans.size()), [&](int64_t task) {
    const Span& span = *spans[static_cast<size_t>(task / parts)];
    const int64_t first = bound(channels, task % parts, parts, step), last = bound(channels, task % parts + 1, parts, step);
    if (together) {
      for (int64_t panel = first / linear.panel; panel * linear.panel < last; ++panel) linear.run(dt, {0, 1, 1}, panel);
    }
    carry_channels(span, first, last);
    kernel.run(scan_, sequence(span), inputs(block, span), first, last, work + task * work_floats,
               block.scanned + span.row * channels, channels);
  });
  for (const Span* span : spans) {
    kernel.finish(scan_, sequence(*span), inputs(block, *span));
    keep_dt(*span, block.dt + span->row * channels, channels);
  }
}

void Mamba1Layer::rescan(ThreadPool&, const Span& span, const int8_t* x, const int8_t* B, const int8_t* dt) const {
  const ScanKernels& kernel = kernels().selective_scan;
  const int64_t channels = conv_.channels;
  const Input B_rows{B, nullptr, c_.B_scale.scale(), c_.d_state};
  const ScanInputs tokens{{x, nullptr, c_.x_scale.scale(), channels}, {dt, nullptr, c_.dt_scale.scale(), channels}, B_rows,
                          B_rows, span.tokens};  // y, which C gives, is not wanted
  Buffer work(kernel.work_floats(scan_, channels) * kFloat), y(span.tokens * channels * kFloat);
  kernel.run(scan_, sequence(span), tokens, 0, channels, work.as<float>(), y.as<float>(), channels);
  kernel.finish(scan_, sequence(span), tokens);
}

void Mamba1Layer::carry_channels(const Span& span, int64_t first, int64_t last) const {
  const int64_t element = element_bytes(c_.state_type);
  carry_state(span, 0, c_.d_state, first * element, last * element);
  carry_pending(span, kX, 0, pending(span), first, last);
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
  const int64_t channels = conv_.channels, selected = x_proj_->outputs();
  const int8_t* row = block.selected + span.row * selected;
  return {{block.convolved + span.row * channels, nullptr, c_.x_scale.scale(), channels},
          {block.dt + span.row * channels, nullptr, c_.dt_scale.scale(), channels},
          {row + c_.dt_rank, nullptr, c_.B_scale.scale(), selected},
          {row + c_.dt_rank + c_.d_state, nullptr, c_.C_scale.scale(), selected},
          span.tokens};
}

}  // namespace ssmquant
