// Mamba-2's scan (ops/ssd/reference.py): a sequence in chunks, or one step, over a range of heads.
//
// A reduced state (float16, int8) is rounded when the position in the sequence is a multiple of `interval`; what the tokens
// since then need is kept beside it ("pending"). A step only reads such a state and the pending tokens:
//   y = exp(c_j) (C_j . S) + sum over i <= j of exp(c_j - c_i) dt_i (C_j . B_i) x_i + D x_j,   c_i = (dt_0 + … + dt_i) A
// until the interval is full; the rounding that is due then is a call of its own, which may come later. A float32 state
// (interval 0) is updated by every step and has no pending tokens.
#pragma once

#include <cstdint>

#include "kernels/operands.hpp"

namespace ssmquant {

// Constants of a layer.
struct SsdLayer {
  int64_t heads, headdim, groups, d_state;
  const float* A;        // [heads], -exp(A_log)
  const float* D;        // [heads]
  const float* dt_bias;  // [heads]
  float dt_min, dt_max;
  StateType state_type;
  int64_t interval;  // tokens between two roundings of a reduced state; 0 for float32
  // Of an int8 state: element (h, p, n) has state_scale[row * state_columns + (n or 0)], row = state_row[h * headdim + p].
  const float* state_scale;   // [any number of rows, state_columns]
  const int16_t* state_row;   // [heads * headdim]; null: all are row 0
  int64_t state_columns;      // d_state or 1
};

// What one sequence remembers in one layer. All zeros (and count 0) at its start. For interval 0 the pending arrays are null.
struct SsdSequence {
  const void* state;  // [heads, headdim, d_state] of state_type
  // The state after the call, the same layout; it may be `state` itself. Written, whole, by `round`, by a step if interval is 0
  // and by a prefill if interval is 0 or count + tokens >= interval; else left alone: the state stays as it was.
  void* next;
  // Pending tokens, updated in place. Rows [0, count) of each [interval, …] are in use.
  void* x;           // [heads, interval, headdim]: codes or floats, as the input x
  void* B;           // [groups, interval, d_state]: codes or floats, as the input B
  float* dt;         // [heads, interval], after softplus and limits
  float* decay;      // [heads, interval], c_i of the formula
  float* decay_low;  // [heads, interval], what float32 leaves of it
  int64_t count;     // position % interval, before the call; the caller adds the call's tokens after it (modulo interval)
};

// Tokens to scan. Rows: x [heads * headdim], dt [heads], B and C [groups * d_state]; scales one or one a channel.
struct SsdInputs {
  Input x, dt, B, C;
  int64_t tokens;
};

struct SsdKernels {
  // A prefill is two jobs over the same arguments: `prepare` for all items of [0, groups * chunks), in any order, then
  // `prefill` for all heads. `chunks` counts the pending tokens, too.
  int64_t (*chunks)(const SsdLayer& layer, const SsdSequence& sequence, int64_t tokens);
  int64_t (*shared_floats)(const SsdLayer& layer, const SsdSequence& sequence, int64_t tokens);  // size of `shared`
  int64_t (*work_floats)(const SsdLayer& layer);                                                 // size of `work`

  // Writes what all heads of a group share of a chunk: B, C and their products. item = chunk * groups + group.
  void (*prepare)(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& inputs, int64_t first, int64_t last,
                  float* shared);

  // Scans all tokens for heads [first, last); y: rows [heads * headdim] of the new tokens, `y_stride` elements apart. Writes
  // the next state and the pending tokens. work: one a thread. shared and work are aligned to 64 bytes.
  void (*prefill)(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& inputs, const float* shared,
                  int64_t first, int64_t last, float* work, float* y, int64_t y_stride);

  // One token (inputs.tokens is 1) for heads [first, last); y [heads * headdim]. Every range of heads computes C . B of the
  // groups that it touches, so few large ranges are best. After a step that fills the interval, `round` comes before anything
  // else.
  void (*step)(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& inputs, int64_t first, int64_t last,
               float* work, float* y);

  // The rounding after a whole interval of pending tokens, for heads [first, last): from `state` to `next`. Of `like`, inputs of
  // the tokens, it looks at kind and scales of x and B alone.
  void (*round)(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& like, int64_t first, int64_t last,
                float* work);
};

}  // namespace ssmquant
