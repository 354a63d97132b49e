#include "engine/mamba2.hpp"

#include <utility>

namespace ssmquant {

namespace {

// Arrays of pending tokens.
enum : size_t {
  kX = LayerLayout::x_inputs,          // [heads, interval, headdim]
  kB = LayerLayout::B_inputs,          // [groups, interval, d_state]
  kDtInputs = LayerLayout::dt_inputs,  // [interval, heads]
  kDt = LayerLayout::others,           // [heads, interval], as the next two
  kDecay,
  kDecayLow
};
constexpr size_t kByHead[] = {kX, kDt, kDecay, kDecayLow};

constexpr int64_t kFloat = sizeof(float);

// So many floats in whole cache lines.
int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

Mamba2Layer::Mamba2Layer(Norm norm, Weights in_proj, Convolution conv, Mamba2Constants constants, Weights out_proj)
    : Layer(std::move(norm), std::move(in_proj), std::move(conv), std::move(out_proj)), c_(std::move(constants)) {
  ssd_ = {c_.heads,  c_.headdim,    c_.groups,  c_.d_state,           c_.A.data(),
          c_.D.data(), c_.dt_bias.data(), c_.dt_min, c_.dt_max, c_.state_type,
          c_.interval, c_.state_scale.data(), c_.state_row.empty() ? nullptr : c_.state_row.data(), c_.state_columns};
}

LayerLayout Mamba2Layer::lay_out_scan(StateLayout& layout) const {
  LayerLayout memory;
  memory.interval = c_.interval;
  memory.rounds_later = c_.interval > 0;
  memory.state = layout.in_epoch(c_.heads, c_.headdim * c_.d_state * element_bytes(c_.state_type));
  const bool codes = conv_.sites.codes();
  memory.pending = {layout.in_epoch(c_.heads, channel_bytes(codes, c_.interval * c_.headdim)),
                    layout.in_epoch(c_.groups, channel_bytes(codes, c_.interval * c_.d_state)),
                    layout.in_epoch(c_.interval, channel_bytes(conv_.takes_codes, c_.heads)),
                    layout.in_epoch(c_.heads, c_.interval * kFloat),
                    layout.in_epoch(c_.heads, c_.interval * kFloat), layout.in_epoch(c_.heads, c_.interval * kFloat)};
  return memory;
}

void Mamba2Layer::mix(ThreadPool& pool, Block& block) const {
  if (!block.steps.empty()) run_steps(pool, block);
  if (!block.pieces.empty()) {
    convolve_pieces(pool, block, c_.d_inner());
    for (const Span& span : block.pieces) run_piece(pool, block, span);
  }
  const int64_t inner = c_.d_inner(), parts = cuts(pool, block.rows);
  const Rows gated = this->gated(block);
  float* work = block.scratch.of<float>(parts * inner);
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(block.rows, part, parts), last = bound(block.rows, part + 1, parts);
    kernels().pointwise.gated_rms_norm(block.scanned + first * inner, projected(block).from(first).input(c_.z_scale),
                                       last - first, inner, c_.norm_weight.data(), c_.norm_eps, inner / c_.groups,
                                       c_.transform.kernel(), work + part * inner,
                                       gated.from(first).output(c_.y.reciprocal.scale()));
  });
  c_.y.round(pool, gated, block.rows);
}

void Mamba2Layer::run_steps(ThreadPool& pool, Block& block) const {
  const int64_t inner = c_.d_inner(), channels = conv_.channels, rows = static_cast<int64_t>(block.steps.size());
  const Rows projected = this->projected(block), convolved = this->convolved(block);
  // B and C, which all heads of a group read: less work than waking a thread, for few rows.
  const int64_t rows_at_once = rows < 4 ? rows : 1;
  pool.run((rows + rows_at_once - 1) / rows_at_once, [&](int64_t task) {
    for (int64_t row = task * rows_at_once; row < rows && row < (task + 1) * rows_at_once; ++row) {
      const Span& span = block.steps[static_cast<size_t>(row)];
      carry_groups(span);
      keep_dt(span, projected.from(span.row, inner + channels).data, projected.bytes(projected.stride));
      conv_.run(enter_window(block, span, inner, inner, channels), 1, inner, channels, convolved.from(span.row));
    }
  });
  const int64_t parts = (cuts(pool, c_.heads * rows) + rows - 1) / rows;  // of each row
  const int64_t work_floats = lines(kernels().ssd.work_floats(ssd_));
  float* work = block.scratch.of<float>(rows * parts * work_floats);
  pool.run(rows * parts, [&](int64_t task) {
    const Span& span = block.steps[static_cast<size_t>(task / parts)];
    const int64_t first = bound(c_.heads, task % parts, parts), last = bound(c_.heads, task % parts + 1, parts);
    const int64_t start = first * c_.headdim, end = last * c_.headdim;
    conv_.run(enter_window(block, span, inner, start, end), 1, start, end, convolved.from(span.row));
    if (c_.interval) carry_state(span, first, last, 0, memory_.state.bytes);  // else the step writes all of it
    carry_heads(span, first, last);
    kernels().ssd.step(ssd_, sequence(span), inputs(block, span), first, last, work + task * work_floats,
                       block.scanned + span.row * inner);
  });
}

void Mamba2Layer::run_piece(ThreadPool& pool, Block& block, const Span& span) const {
  carry_groups(span);
  const Rows projected = this->projected(block);
  const uint8_t* dt = projected.from(span.row, c_.d_inner() + conv_.channels).data;
  keep_dt(span, dt, projected.bytes(projected.stride));
  scan(pool, span, inputs(block, span), block.scratch, block.scanned + span.row * c_.d_inner());
}

void Mamba2Layer::scan(ThreadPool& pool, const Span& span, const SsdInputs& tokens, Scratch& scratch, float* y) const {
  const SsdKernels& kernel = kernels().ssd;
  const SsdSequence memory = sequence(span);
  const int64_t items = kernel.chunks(ssd_, memory, span.tokens) * c_.groups, parts = cuts(pool, c_.heads);
  const int64_t work_floats = lines(kernel.work_floats(ssd_));
  float* work = scratch.of<float>(parts * work_floats + kernel.shared_floats(ssd_, memory, span.tokens));
  float* shared = work + parts * work_floats;
  pool.run(items, [&](int64_t item) { kernel.prepare(ssd_, memory, tokens, item, item + 1, shared); });
  pool.run(parts, [&](int64_t part) {
    const int64_t first = bound(c_.heads, part, parts), last = bound(c_.heads, part + 1, parts);
    if (!rounds(span)) carry_state(span, first, last, 0, memory_.state.bytes);  // else the scan writes all of it
    carry_heads(span, first, last);
    kernel.prefill(ssd_, memory, tokens, shared, first, last, work + part * work_floats, y, c_.d_inner());
  });
}

void Mamba2Layer::rescan(ThreadPool& pool, const Span& span, const uint8_t* x, const uint8_t* B, const uint8_t* dt) const {
  const bool codes = conv_.sites.codes();
  const Input B_rows = input_of(B, codes, c_.B_scale.scale(), c_.group_width());
  const SsdInputs tokens{input_of(x, codes, c_.x_scale.scale(), c_.d_inner()),
                         input_of(dt, conv_.takes_codes, c_.dt_scale.scale(), c_.heads), B_rows, B_rows,
                         span.tokens};  // y, which C gives, is not wanted
  Scratch scratch;
  Buffer y(span.tokens * c_.d_inner() * kFloat);
  scan(pool, span, tokens, scratch, y.as<float>());
}

void Mamba2Layer::carry_heads(const Span& span, int64_t first, int64_t last) const {
  const int64_t count = pending(span);
  if (!count) return;
  for (size_t array : kByHead) {
    carry_pending(span, array, first, last, 0, count * (memory_.pending[array].bytes / c_.interval));
  }
}

void Mamba2Layer::carry_groups(const Span& span) const {
  if (!pending(span)) return;
  carry_pending(span, kB, 0, c_.groups, 0, pending(span) * (memory_.pending[kB].bytes / c_.interval));
  carry_pending(span, kDtInputs, 0, pending(span), 0, memory_.pending[kDtInputs].bytes);
}

int64_t Mamba2Layer::round_floats(const ThreadPool& pool) const {
  return cuts(pool, c_.heads) * lines(kernels().ssd.work_floats(ssd_));
}

void Mamba2Layer::round(ThreadPool& pool, const SequenceState& state, Epoch& to, float* work) const {
  if (!c_.interval || state.tokens % c_.interval) return;
  Epoch& from = *state.moment->epoch;
  const SsdSequence memory = sequence(from, to, from, c_.interval);
  const bool codes = conv_.sites.codes();
  SsdInputs like{};
  like.x = input_of(static_cast<const uint8_t*>(memory.x), codes, c_.x_scale.scale(), c_.d_inner());
  like.B = input_of(static_cast<const uint8_t*>(memory.B), codes, c_.B_scale.scale(), c_.group_width());
  const int64_t parts = cuts(pool, c_.heads), work_floats = round_floats(pool) / parts;
  pool.run(parts, [&](int64_t part) {
    kernels().ssd.round(ssd_, memory, like, bound(c_.heads, part, parts), bound(c_.heads, part + 1, parts),
                        work + part * work_floats);
  });
}

SsdSequence Mamba2Layer::sequence(const Epoch& before, Epoch& after, Epoch& pending, int64_t count) const {
  const void* state = before.data.data() + memory_.state.offset;
  void* next = after.data.data() + memory_.state.offset;
  if (!c_.interval) return {state, next, nullptr, nullptr, nullptr, nullptr, nullptr, 0};
  const auto at = [&](size_t array) { return pending.data.data() + memory_.pending[array].offset; };
  const auto floats = [&](size_t array) { return reinterpret_cast<float*>(at(array)); };
  return {state, next, at(kX), at(kB), floats(kDt), floats(kDecay), floats(kDecayLow), count};
}

SsdSequence Mamba2Layer::sequence(const Span& span) const {
  return sequence(*span.before->moment->epoch, *span.after->moment->epoch, *span.pending, pending(span));
}

SsdInputs Mamba2Layer::inputs(const Block& block, const Span& span) const {
  const int64_t inner = c_.d_inner();
  const Rows x = convolved(block).from(span.row);
  return {x.input(c_.x_scale), projected(block).from(span.row, inner + conv_.channels).input(c_.dt_scale),
          x.from(0, inner).input(c_.B_scale), x.from(0, inner + c_.group_width()).input(c_.C_scale), span.tokens};
}

}  // namespace ssmquant
