#include "kernels/selective_scan.hpp"

#include <cstring>

#include "kernels/state.hpp"
#include "kernels/table.hpp"
#include "kernels/values.hpp"
#include "simd/math.hpp"
#include "simd/subnormals.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

constexpr int64_t kTile = 64;  // tokens whose B and C are dequantised at once

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }  // whole vectors of any instruction set

// Of one call: the pending tokens, then the new ones.
struct Tokens {
  int64_t pending, all, rounded;  // rounded: tokens up to the last whole interval

  Tokens(const ScanLayer& layer, const ScanSequence& sequence, int64_t tokens)
      : pending(sequence.count), all(sequence.count + tokens) {
    rounded = layer.interval ? all - all % layer.interval : all;
  }
};

// Intermediate results of one thread.
struct Work {
  float* A;  // of one vector of channels, [d_state, F32::width], times log2(e)
  // Of a tile of tokens and one vector of channels, [kTile, F32::width]: dt, dt * x, D * x.
  float *dt, *added, *skipped;
  float* B;      // [kTile, d_state]
  float* C;      // [kTile, d_state]
  float* state;  // [vectors of the range, d_state, F32::width]

  static int64_t floats(const ScanLayer& layer, int64_t channels) {
    return kTile * (3 * F32::width + 2 * layer.d_state) + (padded(channels) + F32::width) * layer.d_state + 16;
  }

  Work(const ScanLayer& layer, float* memory) {
    A = memory;
    dt = A + padded(layer.d_state * F32::width);
    added = dt + kTile * F32::width;
    skipped = added + kTile * F32::width;
    B = skipped + kTile * F32::width;
    C = B + kTile * layer.d_state;
    state = C + kTile * layer.d_state;
  }
};

int64_t work_floats(const ScanLayer& layer, int64_t channels) { return Work::floats(layer, channels); }

// Dequantises B and C of tokens [start, end), counted with the pending ones.
void load_B_and_C(const ScanLayer& layer, const ScanSequence& sequence, const ScanInputs& inputs, const Tokens& tokens,
                  int64_t start, int64_t end, const Work& work) {
  const int64_t N = layer.d_state;
  const Input kept = {static_cast<const int8_t*>(inputs.B.codes ? sequence.B : nullptr),
                      static_cast<const float*>(sequence.B), inputs.B.scale, N};
  for (int64_t i = start; i < end; ++i) {
    const int64_t token = i - tokens.pending, row = (i - start) * N;
    each_vector(N, [&](int64_t n, auto lanes) {
      store(token < 0 ? value(kept, i, n, lanes) : value(inputs.B, token, n, lanes), work.B + row + n, lanes);
      // Nobody asks for y of a pending token.
      store(token < 0 ? F32::zero() : value(inputs.C, token, n, lanes), work.C + row + n, lanes);
    });
  }
}

// A vector of channels from c on.
template <class Lanes>
struct Channels {
  const ScanLayer& layer;
  const ScanSequence& sequence;
  const ScanInputs& inputs;
  const Tokens& tokens;
  int64_t c;
  Lanes lanes;

  F32 scale(int64_t n) const {
    const float* row = layer.state_scale + n * layer.scale_n;
    return layer.scale_c ? load(row + c, lanes) : F32::broadcast(row[0]);
  }
  F32 read(int64_t n) const {
    const F32 x = read_state(layer.state_type, sequence.state, n * layer.channels + c, lanes);
    return layer.state_type == StateType::int8 ? x * scale(n) : x;
  }
  void write(F32 h, int64_t n) const {
    if (layer.state_type == StateType::int8) h = h * (F32::broadcast(1.0f) / scale(n));
    write_state(layer.state_type, h, sequence.next, n * layer.channels + c, lanes);
  }
  // What reading finds after writing.
  F32 rounded_int8(F32 h, int64_t n) const {
    const F32 step = scale(n);
    return round_clamp(h * (F32::broadcast(1.0f) / step)) * step;
  }

  F32 x(int64_t i) const {
    if (i >= tokens.pending) return value(inputs.x, i - tokens.pending, c, lanes);
    const Input kept = {static_cast<const int8_t*>(inputs.x.codes ? sequence.x : nullptr),
                        static_cast<const float*>(sequence.x), inputs.x.scale, layer.channels};
    return value(kept, i, c, lanes);
  }
  F32 dt(int64_t i) const {
    if (i < tokens.pending) return load(sequence.dt + i * layer.channels + c, lanes);
    return softplus(value(inputs.dt, i - tokens.pending, c, lanes) + load(layer.dt_bias + c, lanes));
  }
  // Keeps a new token that waits for its rounding.
  void keep(int64_t i, F32 dt) const {
    const int64_t to = (i - tokens.rounded) * layer.channels + c, token = i - tokens.pending;
    store(dt, sequence.dt + to, lanes);
    if (inputs.x.codes) {
      const int8_t* codes = inputs.x.codes + token * inputs.x.stride + c;
      store_codes(load(codes, lanes), static_cast<int8_t*>(sequence.x) + to, lanes);
    } else {
      store(load(inputs.x.floats + token * inputs.x.stride + c, lanes), static_cast<float*>(sequence.x) + to, lanes);
    }
  }

  // What tokens [start, end) bring, whatever the state is.
  void prepare(int64_t start, int64_t end, const Work& work) const {
    for (int64_t n = 0; n < layer.d_state; ++n) {
      (load(layer.A + n * layer.channels + c, lanes) * F32::broadcast(1.4426950408889634f)).store(work.A + n * F32::width);
    }
    const F32 D = load(layer.D + c, lanes);
    for (int64_t i = start; i < end; ++i) {
      const F32 step = dt(i), input = x(i);
      const int64_t to = (i - start) * F32::width;
      step.store(work.dt + to);
      (step * input).store(work.added + to);
      (D * input).store(work.skipped + to);
      if (i >= tokens.rounded && i >= tokens.pending && layer.interval) keep(i, step);
    }
  }

  // Scans tokens [start, end). h: [d_state], in registers where the compiler knows their number.
  template <class States>
  void scan(int64_t start, int64_t end, States states, F32* h, const Work& work, float* y, int64_t y_stride) const {
    const int64_t N = states.count(layer);
    for (int64_t i = start; i < end; ++i) {
      const int64_t from = (i - start) * F32::width;
      const F32 step = F32::load(work.dt + from), added = F32::load(work.added + from);
      const float *B = work.B + (i - start) * N, *C = work.C + (i - start) * N;
      F32 sum = F32::load(work.skipped + from);
#pragma GCC unroll 16
      for (int64_t n = 0; n < N; ++n) {
        const F32 decay = exp2(step * F32::load(work.A + n * F32::width));
        h[n] = fma(decay, h[n], added * F32::broadcast(B[n]));
        sum = fma(h[n], F32::broadcast(C[n]), sum);
      }
      if (i >= tokens.pending) store(sum, y + (i - tokens.pending) * y_stride + c, lanes);
      if (layer.interval && (i + 1) % layer.interval == 0) {
        if (i + 1 == tokens.rounded) {
          for (int64_t n = 0; n < N; ++n) write(h[n], n);
        }
        if (layer.state_type == StateType::int8) {
          for (int64_t n = 0; n < N; ++n) h[n] = rounded_int8(h[n], n);
        } else {
#pragma GCC unroll 16
          for (int64_t n = 0; n < N; ++n) h[n] = round_f16(h[n]);
        }
      }
    }
  }
};

struct Sixteen {
  static constexpr int64_t count(const ScanLayer&) { return 16; }
};
struct AnyNumber {
  static int64_t count(const ScanLayer& layer) { return layer.d_state; }
};

void run(const ScanLayer& layer, const ScanSequence& sequence, const ScanInputs& inputs, int64_t first, int64_t last,
         float* memory, float* y, int64_t y_stride) {
  const FlushSubnormals flush;
  const Tokens tokens(layer, sequence, inputs.tokens);
  const Work work(layer, memory);
  const int64_t N = layer.d_state;
  for (int64_t start = 0; start < tokens.all; start += kTile) {
    const int64_t end = start + kTile < tokens.all ? start + kTile : tokens.all;
    load_B_and_C(layer, sequence, inputs, tokens, start, end, work);
    each_vector(last - first, [&](int64_t place, auto lanes) {
      const Channels<decltype(lanes)> channels = {layer, sequence, inputs, tokens, first + place, lanes};
      channels.prepare(start, end, work);
      float* between = work.state + place * N;
      const auto load_row = [&](int64_t n) { return start ? F32::load(between + n * F32::width) : channels.read(n); };
      if (N == 16) {
        F32 h[16];
        for (int n = 0; n < 16; ++n) h[n] = load_row(n);
        channels.scan(start, end, Sixteen{}, h, work, y, y_stride);
        for (int n = 0; n < 16; ++n) h[n].store(between + n * F32::width);
      } else {
        F32* h = reinterpret_cast<F32*>(between);
        for (int64_t n = 0; n < N; ++n) h[n] = load_row(n);
        channels.scan(start, end, AnyNumber{}, h, work, y, y_stride);
      }
      if (layer.interval || end < tokens.all) return;
      for (int64_t n = 0; n < N; ++n) channels.write(F32::load(between + n * F32::width), n);
    });
  }
}

void finish(const ScanLayer& layer, const ScanSequence& sequence, const ScanInputs& inputs) {
  const Tokens tokens(layer, sequence, inputs.tokens);
  const size_t count = static_cast<size_t>(layer.d_state);
  for (int64_t i = tokens.rounded > tokens.pending ? tokens.rounded : tokens.pending; i < tokens.all; ++i) {
    const int64_t to = (i - tokens.rounded) * layer.d_state, from = (i - tokens.pending) * inputs.B.stride;
    if (inputs.B.codes) {
      memcpy(static_cast<int8_t*>(sequence.B) + to, inputs.B.codes + from, count);
    } else {
      memcpy(static_cast<float*>(sequence.B) + to, inputs.B.floats + from, sizeof(float) * count);
    }
  }
}

}  // namespace

const ScanKernels selective_scan = {&work_floats, &run, &finish};

}  // namespace ssmquant::SSMQUANT_ISA
