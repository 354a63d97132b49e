// The Mamba-2 mixer (modules/mamba2.py).
#pragma once

#include "engine/layer.hpp"

namespace ssmquant {

struct Mamba2Constants {
  int64_t heads, headdim, groups, d_state;
  float dt_min, dt_max;
  std::vector<float> A, D, dt_bias;  // [heads]; A is -exp(A_log)
  Factors z_scale, x_scale, B_scale, C_scale, dt_scale;  // where they are codes
  std::vector<float> norm_weight;  // [d_inner]
  float norm_eps;
  Transform transform;
  Sites y;
  StateType state_type;
  int64_t interval;
  std::vector<float> state_scale;   // [rows, state_columns] of an int8 state
  std::vector<int16_t> state_row;   // [d_inner], or empty
  int64_t state_columns;

  int64_t d_inner() const { return heads * headdim; }
  int64_t group_width() const { return groups * d_state; }
};

class Mamba2Layer : public Layer {
 public:
  Mamba2Layer(Norm norm, Weights in_proj, Convolution conv, Mamba2Constants constants, Weights out_proj);

 protected:
  LayerLayout lay_out_scan(StateLayout& layout) const override;
  void mix(ThreadPool& pool, Block& block) const override;
  void round(ThreadPool& pool, const SequenceState& state, Epoch& to, float* work) const override;
  int64_t round_floats(const ThreadPool& pool) const override;
  void rescan(ThreadPool& pool, const Span& span, const uint8_t* x, const uint8_t* B, const uint8_t* dt) const override;

 private:
  void run_steps(ThreadPool& pool, Block& block) const;
  void run_piece(ThreadPool& pool, Block& block, const Span& span) const;
  void scan(ThreadPool& pool, const Span& span, const SsdInputs& tokens, Scratch& scratch, float* y) const;
  void carry_heads(const Span& span, int64_t first, int64_t last) const;
  void carry_groups(const Span& span) const;
  SsdSequence sequence(const Epoch& before, Epoch& after, Epoch& pending, int64_t count) const;
  SsdSequence sequence(const Span& span) const;
  SsdInputs inputs(const Block& block, const Span& span) const;

  Mamba2Constants c_;
  SsdLayer ssd_;
};

}  // namespace ssmquant
