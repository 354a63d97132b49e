// What the SSD kernels share: dt, decays, the state transposed, places of intermediate results.
#pragma once

#include <cstring>

#include "kernels/ssd.hpp"
#include "kernels/state.hpp"
#include "kernels/values.hpp"
#include "simd/math.hpp"

namespace ssmquant::SSMQUANT_ISA {

constexpr int64_t kChunk = 64;  // tokens; also where the reference cuts

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }  // whole vectors of any instruction set
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// dt of one token: softplus and limits (all lanes).
inline F32 limited_dt(const SsdLayer& layer, F32 raw_plus_bias) {
  return min(max(softplus(raw_plus_bias), F32::broadcast(layer.dt_min)), F32::broadcast(layer.dt_max));
}

// A sum of decay exponents as two floats: float32 alone blurs small differences between large sums.
struct Decay {
  float high, low;

  static Decay of(double sum) {
    const float high = static_cast<float>(sum);
    return {high, static_cast<float>(sum - static_cast<double>(high))};
  }
  double sum() const { return static_cast<double>(high) + static_cast<double>(low); }
};

// exp(to - from) for earlier exponents `from`; `to` is the smaller one.
inline F32 decay_between(Decay to, F32 from_high, F32 from_low) {
  const F32 high = F32::broadcast(to.high) - from_high, low = F32::broadcast(to.low) - from_low;
  return exp(min(high + low, F32::zero()));
}

// Intermediate results of one thread; every part is aligned to 64 bytes.
struct SsdWork {
  int64_t tokens;  // of the longest contraction over tokens
  int64_t width;   // headdim in whole vectors
  float* state;       // [d_state, width], transposed
  float* scale;       // [d_state, width] of an int8 state
  float* reciprocal;  // [d_state, width]
  float* x;           // [tokens, width]
  float* weighted;    // [tokens, width], x times what the state takes of it
  float* scores;      // [kChunk, kChunk], and a vector behind them
  float* B;           // [d_state, tokens], transposed
  float* C;           // [d_state]
  float* scaled_C;    // [d_state], C times a scale of what it meets
  float* products;    // [tokens], C . B
  float* share;       // [tokens], of each token in y or in the state
  float* dt;          // [tokens]
  float* high;        // [tokens], decay exponents
  float* low;         // [tokens]
  float* heads;       // [heads], dt of one token

  SsdWork(const SsdLayer& layer, float* memory, int64_t* floats = nullptr);
};

inline SsdWork::SsdWork(const SsdLayer& layer, float* memory, int64_t* floats) {
  int64_t at = 0;
  const auto take = [&](int64_t count) {
    float* part = memory ? memory + at : nullptr;
    at += padded(count);
    return part;
  };
  tokens = padded(larger(kChunk, layer.interval));
  width = padded(layer.headdim);
  state = take(layer.d_state * width);
  scale = take(layer.d_state * width);
  reciprocal = take(layer.d_state * width);
  x = take(tokens * width);
  weighted = take(tokens * width);
  scores = take(kChunk * kChunk + 16);
  B = take(layer.d_state * tokens);
  C = take(layer.d_state);
  scaled_C = take(layer.d_state);
  products = take(tokens);
  share = take(tokens);
  dt = take(tokens);
  high = take(tokens);
  low = take(tokens);
  heads = take(layer.heads);
  if (floats) *floats = at;
}

// Moves [rows, columns] to its transposed place, a square of vectors at a time: take(row, column, lanes) loads columns of a
// row, put(row, column, lanes, vector) gets rows of a column.
template <class Take, class Put>
void transposed(int64_t rows, int64_t columns, const Take& take, const Put& put) {
  for (int64_t row = 0; row < rows; row += F32::width) {
    const int64_t height = smaller(F32::width, rows - row);
    each_vector(columns, [&](int64_t column, auto lanes) {
      F32 square[F32::width];
      for (int64_t r = 0; r < height; ++r) square[r] = take(row + r, column, lanes);
      for (int64_t r = height; r < F32::width; ++r) square[r] = F32::zero();
      transpose(square);
      const int64_t wide = smaller(F32::width, columns - column);
      for (int64_t c = 0; c < wide; ++c) put(row, column + c, square[c]);
    });
  }
}

// Row of state_scale of element (head, p).
inline const float* scale_row(const SsdLayer& layer, int64_t head, int64_t p) {
  const int64_t row = layer.state_row ? layer.state_row[head * layer.headdim + p] : 0;
  return layer.state_scale + row * layer.state_columns;
}

// Fills work.scale and work.reciprocal for an int8 state.
void load_state_scale(const SsdLayer& layer, int64_t head, const SsdWork& work);
// Reads a head's state into work.state; an int8 one needs work.scale.
void load_state(const SsdLayer& layer, const void* state, int64_t head, const SsdWork& work);
// Writes work.state as it is kept.
void store_state(const SsdLayer& layer, const SsdWork& work, int64_t head, void* state);
// work.state = work.state * decay + sum over k of B[:, k] * x[k, :]; B [d_state, k], rows B_stride apart. `rounded`: as
// reading it would find it after writing it.
void update_state(const SsdLayer& layer, const SsdWork& work, float decay, const float* B, int64_t B_stride, int64_t k,
                  bool rounded);

// Channels [first, first + count) of a row as floats, without the scale if they share one; returns that scale, else 1.
float load_shared_scale(const Input& input, int64_t row, int64_t first, int64_t count, float* to);
// Whether channels [first, first + count) are codes that share one scale.
bool has_shared_scale(const Input& input, int64_t first, int64_t count);

// Pending tokens of a head or group (`part`) as rows of an input like the new tokens'; `first` is its first channel there.
inline Input pending_rows(const Input& like, const void* kept, int64_t part, int64_t interval, int64_t channels, int64_t first) {
  Input rows = {};
  rows.stride = channels;
  if (like.codes) {
    rows.codes = static_cast<const int8_t*>(kept) + part * interval * channels;
    rows.scale = {like.scale.values + like.scale.step * first, like.scale.step};
  } else {
    rows.floats = static_cast<const float*>(kept) + part * interval * channels;
  }
  return rows;
}

// Keeps a new token's x (one head) as pending token `row`, with its dt and exponents.
void keep_token(const SsdLayer& layer, const SsdSequence& sequence, const Input& x, int64_t token, int64_t head, int64_t row,
                float dt);
// Keeps a new token's B (one group) as pending token `row`.
void keep_B(const SsdLayer& layer, const SsdSequence& sequence, const Input& B, int64_t token, int64_t group, int64_t row);

// SsdKernels::step
void ssd_step(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& inputs, int64_t first, int64_t last,
              float* work, float* y);
// SsdKernels::round
void ssd_round(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& like, int64_t first, int64_t last,
               float* work);

}  // namespace ssmquant::SSMQUANT_ISA
