// Mamba-1's scan (ops/selective_scan/reference.py): any number of tokens, over a range of channels.
//
// All arrays of a state are [d_state, channels], the reference's transposed, so that a vector holds neighbouring channels and
// a token's scan needs no sum across a vector. For a reduced state see ssd.hpp; here the pending tokens are scanned again
// from the state, which float16 with interval 1 never needs.
#pragma once

#include <cstdint>

#include "kernels/operands.hpp"

namespace ssmquant {

// Constants of a layer.
struct ScanLayer {
  int64_t channels, d_state;
  const float* A;        // [d_state, channels], -exp(A_log) transposed
  const float* D;        // [channels]
  const float* dt_bias;  // [channels]
  StateType state_type;
  int64_t interval;          // 0 for float32
  const float* state_scale;  // of an int8 state: element (n, c) has state_scale[n * scale_n + c * scale_c]
  int64_t scale_n, scale_c;  // scale_c is 0 or 1
};

// What one sequence remembers in one layer. All zeros (and count 0) at its start; pending arrays are null for interval <= 1.
struct ScanSequence {
  const void* state;  // [d_state, channels] of state_type
  // The state after the call, the same layout; it may be `state` itself. Written, whole, if interval is 0 or
  // count + tokens >= interval; else left alone: the state stays as it was.
  void* next;
  // Pending tokens, updated in place. Rows [0, count) are in use.
  void* x;      // [interval, channels]: codes or floats, as the input x
  void* B;      // [interval, d_state]: codes or floats, as the input B
  float* dt;    // [interval, channels], after softplus
  int64_t count;  // position % interval before the call; the caller adds the call's tokens after it (modulo interval)
};

// Tokens to scan. Rows: x and dt [channels], B and C [d_state]; scales one or one a channel.
struct ScanInputs {
  Input x, dt, B, C;
  int64_t tokens;
};

struct ScanKernels {
  int64_t (*work_floats)(const ScanLayer& layer, int64_t channels);  // size of `work` for a range of so many channels

  // Scans the tokens for channels [first, last), y[t, c] at y + t * y_stride + c; writes the range's next state and pending
  // x and dt. A `first` that is a multiple of 64 is best. work: one a thread, aligned to 64 bytes.
  void (*run)(const ScanLayer& layer, const ScanSequence& sequence, const ScanInputs& inputs, int64_t first, int64_t last,
              float* work, float* y, int64_t y_stride);

  // Updates the pending B, which all ranges read: to be called once, after all of them.
  void (*finish)(const ScanLayer& layer, const ScanSequence& sequence, const ScanInputs& inputs);
};

}  // namespace ssmquant
