#include "kernels/ssd_work.hpp"
#include "simd/dot.hpp"
#include "simd/subnormals.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

// A state is read once a token and from far away, faster than the processor foresees: so many bytes in front are fetched.
constexpr int64_t kAhead = 4096;

void fetch(const void* memory, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(memory) + at);
}

// out[r] = row r of `matrix` . right, for `rows` rows of `columns`: as many rows at a time as a vector has lanes, so that
// their sums end up in one. What lies kAhead behind the rows is fetched if the matrix is one that is `streamed`.
template <bool streamed, class Element>
void dots(const Element* matrix, const float* right, int64_t rows, int64_t columns, float* out) {
  constexpr int together = F32::width;
  constexpr int64_t read_at_once = together * F32::width * int64_t{sizeof(Element)};
  int64_t r = 0;
  for (; r + together <= rows; r += together, matrix += together * columns) {
    F32 sums[together];
    for (int i = 0; i < together; ++i) sums[i] = F32::zero();
    each_vector(columns, [&](int64_t n, auto lanes) {
      if (streamed) fetch(reinterpret_cast<const char*>(matrix + together * n) + kAhead, read_at_once);
      const F32 factor = load(right + n, lanes);
      repeat<together>([&](auto i) SSMQUANT_INLINE { sums[i] = fma(load(matrix + i * columns + n, lanes), factor, sums[i]); });
    });
    repeat<together>([&](auto i) SSMQUANT_INLINE { hold(sums[i]); });  // or gcc 12 has them in memory in each round
    transpose(sums);
    for (int half = together / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
    }
    sums[0].store(out + r);
  }
  for (; r < rows; ++r, matrix += columns) {
    F32 sum = F32::zero();
    each_vector(columns, [&](int64_t n, auto lanes) { sum = fma(load(matrix + n, lanes), load(right + n, lanes), sum); });
    out[r] = sum.sum();
  }
}

// The sum over i of share[i] * rows[i * stride], for `count` rows; four sums hide the latency of the products.
template <class Element, class Lanes>
F32 weighted_sum(const float* share, const Element* rows, int64_t count, int64_t stride, Lanes lanes) {
  F32 a = F32::zero(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4, rows += 4 * stride) {
    a = fma(F32::broadcast(share[i]), load(rows, lanes), a);
    b = fma(F32::broadcast(share[i + 1]), load(rows + stride, lanes), b);
    c = fma(F32::broadcast(share[i + 2]), load(rows + 2 * stride, lanes), c);
    d = fma(F32::broadcast(share[i + 3]), load(rows + 3 * stride, lanes), d);
  }
  for (; i < count; ++i, rows += stride) a = fma(F32::broadcast(share[i]), load(rows, lanes), a);
  return (a + b) + (c + d);
}

// One token of one sequence.
struct Step {
  const SsdLayer& layer;
  const SsdSequence& sequence;
  const SsdInputs& inputs;
  const SsdWork& work;
  float* y;
  int64_t pending = sequence.count;

  // dt of heads [first, last) to work.heads.
  void load_dt(int64_t first, int64_t last) const {
    each_vector(last - first, [&](int64_t at, auto lanes) {
      const F32 raw = value(inputs.dt, 0, first + at, lanes) + load(layer.dt_bias + first + at, lanes);
      store(limited_dt(layer, raw), work.heads + first + at, lanes);
    });
  }

  // A float32 state: h = exp(dt A) h + dt x B, y = h . C + D x. work.B and work.C are those of the head's group.
  void update(int64_t head) const {
    const int64_t N = layer.d_state, P = layer.headdim, start = head * P;
    const float dt = work.heads[head];
    const F32 decay = F32::broadcast(exp(dt * layer.A[head]));
    each_vector(P, [&](int64_t p, auto lanes) { store(value(inputs.x, 0, start + p, lanes), work.x + p, lanes); });
    const float* from = static_cast<const float*>(sequence.state) + start * N;
    float* to = static_cast<float*>(sequence.next) + start * N;
    for (int64_t p = 0; p < P; ++p, from += N, to += N) {
      const F32 dx = F32::broadcast(dt * work.x[p]);
      F32 dot = F32::zero();
      each_vector(N, [&](int64_t n, auto lanes) {
        const F32 h = fma(load(from + n, lanes), decay, dx * load(work.B + n, lanes));
        store(h, to + n, lanes);
        dot = fma(h, load(work.C + n, lanes), dot);
      });
      y[start + p] = dot.sum() + layer.D[head] * work.x[p];
    }
  }

  // B and C of a group, dequantised: for update.
  void load_B_and_C(int64_t group) const {
    const int64_t N = layer.d_state;
    each_vector(N, [&](int64_t n, auto lanes) {
      store(value(inputs.B, 0, group * N + n, lanes), work.B + n, lanes);
      store(value(inputs.C, 0, group * N + n, lanes), work.C + n, lanes);
    });
  }

  // work.C, and work.products: C . B of the pending tokens and of this one. Returns the factor that is left out of C; the
  // products have all factors. Where B and C have one scale each, the sums are exact.
  float load_products(int64_t group) const {
    const int64_t N = layer.d_state, first = group * N;
    const bool shared = has_shared_scale(inputs.B, first, N);
    const float C_factor = load_shared_scale(inputs.C, 0, first, N, work.C);
    const float factor = shared ? C_factor * inputs.B.scale.values[inputs.B.scale.step * first] : C_factor;
    const float* right = work.C;
    if (inputs.B.codes && !shared) {
      each_vector(N, [&](int64_t n, auto lanes) {
        store(load(work.C + n, lanes) * at(inputs.B.scale, first + n, lanes), work.scaled_C + n, lanes);
      });
      right = work.scaled_C;
    }
    const int64_t kept = group * layer.interval * N;
    if (inputs.B.codes) {
      dots<false>(static_cast<const int8_t*>(sequence.B) + kept, right, pending, N, work.products);
      dots<false>(inputs.B.codes + first, right, 1, N, work.products + pending);
    } else {
      dots<false>(static_cast<const float*>(sequence.B) + kept, right, pending, N, work.products);
      dots<false>(inputs.B.floats + first, right, 1, N, work.products + pending);
    }
    for (int64_t i = 0; i <= pending; ++i) work.products[i] *= factor;
    return C_factor;
  }

  // out[p] = C . state[p], without the factor that is left out of work.C.
  void state_dots(int64_t head, float* out) const {
    const int64_t N = layer.d_state, P = layer.headdim, start = head * P * N;
    switch (layer.state_type) {
      case StateType::float16:
        return dots<true>(static_cast<const F16*>(sequence.state) + start, work.C, P, N, out);
      case StateType::float32:
        return dots<true>(static_cast<const float*>(sequence.state) + start, work.C, P, N, out);
      case StateType::int8:
        break;
    }
    const int8_t* codes = static_cast<const int8_t*>(sequence.state) + start;
    for (int64_t p = 0; p < P;) {  // runs of rows that share scales
      const float* scale = scale_row(layer, head, p);
      int64_t end = p + 1;
      while (end < P && scale_row(layer, head, end) == scale) ++end;
      each_vector(N, [&](int64_t n, auto lanes) {
        const F32 factor = layer.state_columns > 1 ? load(scale + n, lanes) : F32::broadcast(scale[0]);
        store(load(work.C + n, lanes) * factor, work.scaled_C + n, lanes);
      });
      dots<true>(codes + p * N, work.scaled_C, end - p, N, out + p);
      p = end;
    }
  }

  // Fetches what `read` needs of a head first: the state's beginning, and the pending tokens.
  void fetch_head(int64_t head, bool state) const {
    const int64_t P = layer.headdim, row = head * layer.interval;
    const int64_t size = inputs.x.codes ? 1 : sizeof(float);
    const int64_t head_bytes = P * layer.d_state * element_bytes(layer.state_type);
    if (state) fetch(static_cast<const char*>(sequence.state) + head * head_bytes, kAhead);
    fetch(static_cast<const char*>(sequence.x) + row * P * size, (pending + 1) * P * size);
    const float* const of_tokens[] = {sequence.dt, sequence.decay, sequence.decay_low};
    for (const float* values : of_tokens) fetch(values + row, (pending + 1) * int64_t{sizeof(float)});
  }

  // A reduced state: it is read, and the tokens since its rounding are added.
  void read(int64_t head, float C_factor) const {
    const int64_t P = layer.headdim, start = head * P, row = head * layer.interval;
    fetch_head(head + 1, false);
    keep_token(layer, sequence, inputs.x, 0, head, pending, work.heads[head]);
    const float *dt = sequence.dt + row, *high = sequence.decay + row, *low = sequence.decay_low + row;
    const Decay now = {high[pending], low[pending]};
    each_vector(pending + 1, [&](int64_t i, auto lanes) {
      const F32 between = decay_between(now, load(high + i, lanes), load(low + i, lanes));
      store(between * load(dt + i, lanes) * load(work.products + i, lanes), work.share + i, lanes);
    });
    work.share[pending] += layer.D[head];
    float* carried = work.x;
    state_dots(head, carried);
    const F32 decay = F32::broadcast(exp(now.high) * C_factor);
    each_vector(P, [&](int64_t p, auto lanes) {
      const int64_t from = row * P + p;
      const F32 sum = inputs.x.codes
                          ? weighted_sum(work.share, static_cast<const int8_t*>(sequence.x) + from, pending + 1, P, lanes) *
                                at(inputs.x.scale, start + p, lanes)
                          : weighted_sum(work.share, static_cast<const float*>(sequence.x) + from, pending + 1, P, lanes);
      store(fma(decay, load(carried + p, lanes), sum), y + start + p, lanes);
    });
  }
};

}  // namespace

void ssd_step(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& inputs, int64_t first, int64_t last,
              float* memory, float* y) {
  const FlushSubnormals flush;
  const SsdWork work(layer, memory);
  const Step step = {layer, sequence, inputs, work, y};
  const int64_t heads_a_group = layer.heads / layer.groups;
  if (layer.interval) step.fetch_head(first, true);
  step.load_dt(first, last);
  for (int64_t head = first; head < last;) {
    const int64_t group = head / heads_a_group, end = smaller(last, (group + 1) * heads_a_group);
    if (!layer.interval) {
      step.load_B_and_C(group);
      for (; head < end; ++head) step.update(head);
      continue;
    }
    if (head % heads_a_group == 0) keep_B(layer, sequence, inputs.B, 0, group, step.pending);
    const float C_factor = step.load_products(group);
    for (; head < end; ++head) step.read(head, C_factor);
  }
}

}  // namespace ssmquant::SSMQUANT_ISA
