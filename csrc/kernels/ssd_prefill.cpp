#include "kernels/product.hpp"
#include "kernels/ssd_work.hpp"
#include "kernels/table.hpp"
#include "simd/subnormals.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

// The tokens of a call: the pending ones, then the new ones, cut into chunks.
struct Tokens {
  int64_t pending, all, rounded;  // rounded: tokens up to the last whole interval
  int64_t interval;

  Tokens(const SsdLayer& layer, const SsdSequence& sequence, int64_t tokens)
      : pending(sequence.count), all(sequence.count + tokens), interval(layer.interval) {
    rounded = interval ? all - all % interval : all;
  }

  // Chunks of an interval; all are kChunk long but the last one of the interval.
  int64_t pieces() const { return interval ? (interval + kChunk - 1) / kChunk : 1; }
  int64_t chunks() const {
    if (!interval) return (all + kChunk - 1) / kChunk;
    return all / interval * pieces() + (all % interval + kChunk - 1) / kChunk;
  }
  int64_t start(int64_t chunk) const {
    return interval ? chunk / pieces() * interval + chunk % pieces() * kChunk : chunk * kChunk;
  }
  int64_t length(int64_t chunk) const {
    const int64_t from = start(chunk), until_rounding = interval ? interval - from % interval : kChunk;
    return smaller(smaller(kChunk, until_rounding), all - from);
  }
};

// What the heads of a group share of a chunk.
struct Shared {
  float* C;       // [kChunk, d_state]
  float* B;       // [d_state, kChunk], transposed
  float* scores;  // [kChunk, kChunk], C . B; above the diagonal only as far as blocks reach
  float* factor;  // B and C are to be multiplied by factor[0] and factor[1], which are not in scores either

  static int64_t floats(const SsdLayer& layer) { return 2 * kChunk * layer.d_state + kChunk * kChunk + 16; }

  Shared(const SsdLayer& layer, float* memory, int64_t item) {
    C = memory + item * floats(layer);
    B = C + kChunk * layer.d_state;
    scores = B + layer.d_state * kChunk;
    factor = scores + kChunk * kChunk;
  }
};

int64_t chunks(const SsdLayer& layer, const SsdSequence& sequence, int64_t tokens) {
  return Tokens(layer, sequence, tokens).chunks();
}

int64_t shared_floats(const SsdLayer& layer, const SsdSequence& sequence, int64_t tokens) {
  return chunks(layer, sequence, tokens) * layer.groups * Shared::floats(layer);
}

int64_t work_floats(const SsdLayer& layer) {
  int64_t floats;
  SsdWork(layer, nullptr, &floats);
  return floats;
}

void prepare(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& inputs, int64_t first, int64_t last,
             float* memory) {
  const Tokens tokens(layer, sequence, inputs.tokens);
  const int64_t N = layer.d_state;
  for (int64_t item = first; item < last; ++item) {
    const int64_t group = item % layer.groups, start = tokens.start(item / layer.groups);
    const int64_t length = tokens.length(item / layer.groups);
    const Shared shared(layer, memory, item);
    const Input old = pending_rows(inputs.B, sequence.B, group, layer.interval, N, group * N);
    memset(shared.B, 0, sizeof(float) * static_cast<size_t>(N * kChunk));
    shared.factor[0] = shared.factor[1] = 1.0f;
    for (int64_t t = 0; t < length; ++t) {
      const int64_t token = start + t - tokens.pending;
      float* row = shared.C + t * N;
      // C's place holds the row of B for a moment.
      shared.factor[0] = token < 0 ? load_shared_scale(old, start + t, 0, N, row)
                                   : load_shared_scale(inputs.B, token, group * N, N, row);
      for (int64_t n = 0; n < N; ++n) shared.B[n * kChunk + t] = row[n];
      if (token < 0) {
        memset(row, 0, sizeof(float) * static_cast<size_t>(N));  // nobody asks for y of a pending token
      } else {
        shared.factor[1] = load_shared_scale(inputs.C, token, group * N, N, row);
      }
    }
    each_block(length, kChunk / F32::width, [&](int64_t t, auto rows, int64_t s, auto vectors) {
      if (s >= t + rows.number) return;  // above the diagonal
      Sums<rows.number, vectors.number> sums;
      sums.clear();
      sums.add(shared.C + t * N, N, shared.B + s, kChunk, N);
      float* to = shared.scores + t * kChunk + s;
      sums.each([&](auto r, auto i, F32& sum) SSMQUANT_INLINE { sum.store(to + r * kChunk + i * F32::width); });
    });
  }
}

// One chunk of one head.
struct HeadChunk {
  const SsdLayer& layer;
  const SsdSequence& sequence;
  const SsdInputs& inputs;
  const SsdWork& work;
  const Shared& shared;
  int64_t head, start, length, pending;  // start: among the tokens of the call, the pending ones first
  bool blank;                            // the state before the chunk is zeros

  // Whether token t of the chunk is a new one, and which.
  bool is_new(int64_t t) const { return start + t >= pending; }
  int64_t token(int64_t t) const { return start + t - pending; }

  Decay decay(int64_t t) const { return {work.high[t], work.low[t]}; }

  // dt and decay exponents of the tokens.
  void load_dt() const {
    float* dt = work.dt;
    for (int64_t t = 0; t < length; ++t) {
      if (!is_new(t)) continue;
      const int64_t at = token(t) * inputs.dt.stride + head;
      dt[t] = inputs.dt.codes
                  ? static_cast<float>(inputs.dt.codes[at]) * inputs.dt.scale.values[inputs.dt.scale.step * head]
                  : inputs.dt.floats[at];
    }
    each_vector(length, [&](int64_t t, auto lanes) {
      const F32 raw = load(dt + t, lanes) + F32::broadcast(layer.dt_bias[head]);
      store(limited_dt(layer, raw), dt + t, lanes);
    });
    double sum = 0.0;
    for (int64_t t = 0; t < length; ++t) {
      if (!is_new(t)) dt[t] = sequence.dt[head * layer.interval + start + t];
      sum += static_cast<double>(dt[t] * layer.A[head]);
      const Decay decay = Decay::of(sum);
      work.high[t] = decay.high;
      work.low[t] = decay.low;
    }
  }

  void load_x() const {
    const int64_t P = layer.headdim;
    const Input old = pending_rows(inputs.x, sequence.x, head, layer.interval, P, head * P);
    for (int64_t t = 0; t < length; ++t) {
      is_new(t) ? load_row(inputs.x, token(t), head * P, t) : load_row(old, start + t, 0, t);
    }
  }

  // Row t of work.x: channels of a row of x, dequantised.
  void load_row(const Input& x, int64_t row, int64_t first, int64_t t) const {
    float* const to = work.x + t * work.width;
    each_vector(layer.headdim, [&](int64_t p, auto lanes) { store(value(x, row, first + p, lanes), to + p, lanes); });
    for (int64_t p = layer.headdim; p < work.width; ++p) to[p] = 0.0f;
  }

  // Fetches what lies far apart in memory: the place of y of token t, and x of the one a chunk behind it.
  void fetch(int64_t t, const float* y, int64_t y_stride) const {
    if (!is_new(t)) return;
    const int64_t P = layer.headdim, line = 64, size = inputs.x.codes ? 1 : sizeof(float);
    const float* row = y + token(t) * y_stride + head * P;
    for (int64_t p = 0; p < P; p += line / sizeof(float)) __builtin_prefetch(row + p, 1);
    if (token(t) + kChunk >= inputs.tokens) return;
    const int64_t next = (token(t) + kChunk) * inputs.x.stride + head * P;
    const char* x = inputs.x.codes ? reinterpret_cast<const char*>(inputs.x.codes + next)
                                   : reinterpret_cast<const char*>(inputs.x.floats + next);
    for (int64_t at = 0; at < P * size; at += line) __builtin_prefetch(x + at);
  }

  // work.scores[t, s] = (C_t . B_s) exp(c_t - c_s) dt_s for s <= t, and D on the diagonal. Fetches for `outputs` by the way.
  void weigh_scores(const float* y, int64_t y_stride) const {
    const F32 factor = F32::broadcast(shared.factor[0] * shared.factor[1]);
    float to_edge[kChunk], from_edge[F32::width];
    // A vector of tokens has one exponent for each token before it, to its edge, and one for each of its own from there.
    for (int64_t edge = 0; edge < length; edge += F32::width) {
      const Decay at_edge = edge ? decay(edge - 1) : Decay{0.0f, 0.0f};
      for (int64_t s = 0; s < edge; s += F32::width) {
        const F32 between = decay_between(at_edge, F32::load(work.high + s), F32::load(work.low + s));
        (factor * between * F32::load(work.dt + s)).store(to_edge + s);
      }
      const F32 since = F32::load(work.high + edge) - F32::broadcast(at_edge.high);
      exp(min(since + (F32::load(work.low + edge) - F32::broadcast(at_edge.low)), F32::zero())).store(from_edge);
      for (int64_t t = edge; t < edge + F32::width && t < length; ++t) {
        fetch(t, y, y_stride);
        const float* products = shared.scores + t * kChunk;
        float* row = work.scores + t * kChunk;
        const F32 since_edge = F32::broadcast(from_edge[t - edge]);
        for (int64_t s = 0; s < edge; s += F32::width) {
          (F32::load(products + s) * (F32::load(to_edge + s) * since_edge)).store(row + s);
        }
        const F32 between = decay_between(decay(t), F32::load(work.high + edge), F32::load(work.low + edge));
        (F32::load(products + edge) * factor * between * F32::load(work.dt + edge)).store(row + edge);
        row[t] += layer.D[head];
        for (int s = 0; s < kRows; s += F32::width) F32::zero().store(row + t + 1 + s);  // as far as a block reaches
      }
    }
  }

  // y[t] = exp(c_t) C_t . state + scores[t] . x
  void outputs(float* y, int64_t y_stride) const {
    const F32 factor = F32::broadcast(shared.factor[1]);
    float from_start[kChunk];
    for (int64_t t = 0; t < length; t += F32::width) {
      (exp(F32::load(work.high + t)) * factor).store(from_start + t);
    }
    each_block(length, work.width / F32::width, [&](int64_t t, auto rows, int64_t p, auto vectors) {
      if (p >= layer.headdim || start + t + rows.number <= pending) return;
      Sums<rows.number, vectors.number> sums;
      sums.clear();
      if (!blank) {
        sums.add(shared.C + t * layer.d_state, layer.d_state, work.state + p, work.width, layer.d_state);
        sums.each([&](auto r, auto, F32& sum) SSMQUANT_INLINE { sum = sum * F32::broadcast(from_start[t + r]); });
      }
      sums.add(work.scores + t * kChunk, kChunk, work.x + p, work.width, t + rows.number);
      const int64_t left = layer.headdim - p;
      sums.each([&](auto r, auto i, F32& sum) SSMQUANT_INLINE {
        const int64_t here = left - i * F32::width;
        if (!is_new(t + r) || here <= 0) return;
        float* at = y + token(t + r) * y_stride + head * layer.headdim + p + i * F32::width;
        here >= F32::width ? sum.store(at) : sum.store_first(at, static_cast<int>(here));
      });
    });
  }

  // Keeps the chunk's new tokens from position `rounded` on.
  void keep(int64_t rounded) const {
    for (int64_t t = larger(larger(rounded, pending) - start, 0); t < length; ++t) {
      keep_token(layer, sequence, inputs.x, token(t), head, start + t - rounded, work.dt[t]);
    }
  }

  // The state after the chunk; rounded, as it will be read again. x becomes what the state takes of it.
  void update(bool rounded) const {
    const Decay end = decay(length - 1);
    const F32 factor = F32::broadcast(shared.factor[0]);
    for (int64_t t = 0; t < length; t += F32::width) {
      const F32 to_end = decay_between(end, F32::load(work.high + t), F32::load(work.low + t));
      (to_end * F32::load(work.dt + t) * factor).store(work.share + t);
    }
    for (int64_t t = 0; t < length; ++t) {
      const F32 share = F32::broadcast(work.share[t]);
      float* const row = work.x + t * work.width;
      for (int64_t p = 0; p < work.width; p += F32::width) (F32::load(row + p) * share).store(row + p);
    }
    update_state(layer, work, exp(end.high), shared.B, kChunk, length, rounded);
  }
};

// Whether a head's state is zeros, as at the start of a sequence.
bool is_blank(const SsdLayer& layer, const void* state, int64_t head) {
  const int64_t bytes = layer.headdim * layer.d_state * element_bytes(layer.state_type);
  const uint8_t* const first = static_cast<const uint8_t*>(state) + head * bytes;
  uint8_t any = 0;
  for (int64_t i = 0; i < bytes; ++i) any |= first[i];
  return !any;
}

void prefill(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& inputs, const float* memory, int64_t first,
             int64_t last, float* work_memory, float* y, int64_t y_stride) {
  const FlushSubnormals flush;
  const SsdWork work(layer, work_memory);
  const Tokens tokens(layer, sequence, inputs.tokens);
  const int64_t chunk_count = tokens.chunks(), heads_a_group = layer.heads / layer.groups;
  for (int64_t head = first; head < last; ++head) {
    const int64_t group = head / heads_a_group;
    if (layer.state_type == StateType::int8) load_state_scale(layer, head, work);
    load_state(layer, sequence.state, head, work);
    const bool blank = is_blank(layer, sequence.state, head);
    for (int64_t c = 0; c < chunk_count; ++c) {
      const Shared shared(layer, const_cast<float*>(memory), c * layer.groups + group);
      const HeadChunk chunk = {layer, sequence, inputs,          work,          shared,
                               head,  tokens.start(c), tokens.length(c), tokens.pending, c == 0 && blank};
      chunk.load_dt();
      chunk.load_x();
      chunk.weigh_scores(y, y_stride);
      chunk.outputs(y, y_stride);
      const int64_t end = chunk.start + chunk.length;
      if (end > tokens.rounded) chunk.keep(tokens.rounded);
      const bool more = c + 1 < chunk_count;
      if (more || end == tokens.rounded) chunk.update(more && layer.interval && end % layer.interval == 0);
      if (end == tokens.rounded) store_state(layer, work, head, sequence.next);
    }
    if (layer.interval && head % heads_a_group == 0) {
      for (int64_t i = larger(tokens.rounded, tokens.pending); i < tokens.all; ++i) {
        keep_B(layer, sequence, inputs.B, i - tokens.pending, group, i - tokens.rounded);
      }
    }
  }
}

}  // namespace

const SsdKernels ssd = {&chunks, &shared_floats, &work_floats, &prepare, &prefill, &ssd_step, &ssd_round};

}  // namespace ssmquant::SSMQUANT_ISA
