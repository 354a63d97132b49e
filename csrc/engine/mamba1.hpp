// The Mamba-1 mixer (modules/mamba1.py).
#pragma once

#include "engine/layer.hpp"

namespace ssmquant {

struct Mamba1Constants {
  int64_t d_state, dt_rank;
  std::vector<float> A;           // [d_state, d_inner], -exp(A_log) transposed
  std::vector<float> D, dt_bias;  // [d_inner]
  Factors z_scale, x_scale, B_scale, C_scale, dt_scale;  // where they are codes
  // Of the norms without gain on dt, B and C; negative: there are none.
  float select_eps;
  Sites selected;  // dt, B and C
  Transform transform;
  Sites y;
  StateType state_type;
  int64_t interval;
  std::vector<float> state_scale;  // of an int8 state: [1] or [d_inner]
};

class Mamba1Layer : public Layer {
 public:
  Mamba1Layer(Norm norm, Weights in_proj, Convolution conv, Weights x_proj, Weights dt_proj, Mamba1Constants constants,
              Weights out_proj);

  Widths widths() const override;
  int64_t bytes() const override;

 protected:
  LayerLayout lay_out_scan(StateLayout& layout) const override;
  const PackedLinear& after_in_proj() const override { return *x_proj_; }
  void mix(ThreadPool& pool, Block& block) const override;
  void rescan(ThreadPool& pool, const Span& span, const uint8_t* x, const uint8_t* B, const uint8_t* dt) const override;

 private:
  void convolve_steps(ThreadPool& pool, Block& block) const;
  void select(ThreadPool& pool, Block& block) const;
  void scan(ThreadPool& pool, Block& block) const;
  Rows selected(const Block& block) const { return {block.selected, c_.selected.codes(), x_proj_->outputs()}; }
  Rows dt(const Block& block) const { return {block.dt, dt_proj_->sites.codes(), conv_.channels}; }
  void carry_channels(const Span& span, int64_t first, int64_t last) const;
  ScanSequence sequence(const Span& span) const;
  ScanInputs inputs(const Block& block, const Span& span) const;

  Weights x_proj_, dt_proj_;
  Mamba1Constants c_;
  ScanLayer scan_;
};

}  // namespace ssmquant
