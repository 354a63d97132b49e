#include "kernels/ssd_work.hpp"
#include "simd/dot.hpp"
#include "simd/subnormals.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

// A state is read once a token and from far away, faster than the processor foresees: so many bytes in front are fetched into
// the second cache, and from there, nearer, into the first.
constexpr int64_t kFar = 8192, kNear = 2048;

template <int locality = 3>
void fetch(const void* memory, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(memory) + at, 0, locality);
}

// Called where so many bytes are about to be read. Fetches what lies behind them, and, bit by bit, memory that is wanted soon.
class Fetching {
 public:
  // `bytes` from `soon` on, while `read` bytes are read, `at_once` at a time.
  Fetching(const void* soon, int64_t bytes, int64_t read, int64_t at_once)
      : soon_(static_cast<const char*>(soon)), step_((bytes * at_once / larger(read, 1) + 63) / 64 * 64) {}

  void operator()(const void* at, int64_t bytes) const {
    fetch<2>(static_cast<const char*>(at) + kFar, bytes);
    fetch(static_cast<const char*>(at) + kNear, bytes);
    fetch(soon_, step_);
    soon_ += step_;
  }

 private:
  mutable const char* soon_;
  const int64_t step_;
};

constexpr auto kNoFetching = [](const void*, int64_t) {};

// Rows whose sums end up in one vector.
constexpr int kTogether = F32::width;

// Bytes that `dots` and `code_dots` read at once.
template <class Element>
constexpr int64_t kAtOnce = kTogether * F32::width * int64_t{sizeof(Element)};
constexpr int64_t kCodes = 4 * Dot::width, kCodesAtOnce = kTogether * kCodes;

// out[r] = row r of `matrix` . right, for `rows` rows of `columns`. reads(memory, bytes) is told what is about to be read.
template <class Element, class Reads>
void dots(const Element* matrix, const float* right, int64_t rows, int64_t columns, float* out, const Reads& reads) {
  constexpr int together = kTogether;
  int64_t r = 0;
  for (; r + together <= rows; r += together, matrix += together * columns) {
    F32 sums[together];
    for (int i = 0; i < together; ++i) sums[i] = F32::zero();
    const auto meet = [&](int64_t n, auto lanes) SSMQUANT_INLINE {
      const F32 factor = load(right + n, lanes);
      repeat<together>([&](auto i) SSMQUANT_INLINE { sums[i] = fma(load(matrix + i * columns + n, lanes), factor, sums[i]); });
    };
    // Not each_vector: behind a call, the sums would be in memory in each round.
    int64_t n = 0;
    for (; n + F32::width <= columns; n += F32::width) {
      reads(matrix + together * n, kAtOnce<Element>);
      meet(n, All{});
    }
    if (n < columns) meet(n, First{static_cast<int>(columns - n)});
    repeat<together>([&](auto i) SSMQUANT_INLINE { hold(sums[i]); });  // or gcc 12 has them in memory in each round
    sum_each(sums).store(out + r);
  }
  for (; r < rows; ++r, matrix += columns) {
    F32 sum = F32::zero();
    each_vector(columns, [&](int64_t n, auto lanes) { sum = fma(load(matrix + n, lanes), load(right + n, lanes), sum); });
    out[r] = sum.sum();
  }
}

// The same for codes, exactly; columns are a multiple of kCodes.
template <class Reads>
void code_dots(const int8_t* matrix, const int8_t* right, int64_t rows, int64_t columns, float* out, const Reads& reads) {
  alignas(64) constexpr int8_t zeros[kCodes] = {};
  Dot::Sum offset = Dot::all(0);
  for (int64_t n = 0; n < columns; n += kCodes) offset = Dot::add(offset, Dot::codes(zeros), Dot::inputs(right + n));
  const F32 brought_in = Dot::to_float(offset);
  int64_t r = 0;
  for (; r + kTogether <= rows; r += kTogether, matrix += kTogether * columns) {
    Dot::Sum sums[kTogether];
    repeat<kTogether>([&](auto i) SSMQUANT_INLINE { sums[i] = Dot::all(0); });
    for (int64_t n = 0; n < columns; n += kCodes) {
      reads(matrix + kTogether * n, kCodesAtOnce);
      const Dot::Input codes = Dot::inputs(right + n);
      repeat<kTogether>([&](auto i) SSMQUANT_INLINE { sums[i] = Dot::add(sums[i], Dot::codes(matrix + i * columns + n), codes); });
    }
    F32 totals[kTogether];
    repeat<kTogether>([&](auto i) SSMQUANT_INLINE {
      Dot::hold(sums[i]);
      totals[i] = Dot::to_float(sums[i]) - brought_in;
    });
    sum_each(totals).store(out + r);
  }
  for (; r < rows; ++r, matrix += columns) {
    Dot::Sum sum = Dot::all(0);
    for (int64_t n = 0; n < columns; n += kCodes) sum = Dot::add(sum, Dot::codes(matrix + n), Dot::inputs(right + n));
    out[r] = (Dot::to_float(sum) - brought_in).sum();
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

  // C of a group: work.C, without a factor; and, where they are codes that share a scale, which is the factor then, the codes.
  struct OfGroup {
    float factor;
    const int8_t* codes;
  };

  // C of a group, and work.products: C . B of the pending tokens and of this one, with all factors. Where B and C have one scale
  // each, the sums are exact.
  OfGroup load_products(int64_t group) const {
    const int64_t N = layer.d_state, first = group * N;
    const bool shared = has_shared_scale(inputs.B, first, N);
    const float C_factor = load_shared_scale(inputs.C, 0, first, N, work.C);
    const int8_t* codes = N % kCodes == 0 && has_shared_scale(inputs.C, first, N) ? inputs.C.codes + first : nullptr;
    const float factor = shared ? C_factor * inputs.B.scale.values[inputs.B.scale.step * first] : C_factor;
    const float* right = work.C;
    if (inputs.B.codes && !shared) {
      each_vector(N, [&](int64_t n, auto lanes) {
        store(load(work.C + n, lanes) * at(inputs.B.scale, first + n, lanes), work.scaled_C + n, lanes);
      });
      right = work.scaled_C;
    }
    const int64_t kept = group * layer.interval * N;
    if (shared && codes) {
      code_dots(static_cast<const int8_t*>(sequence.B) + kept, codes, pending, N, work.products, kNoFetching);
      code_dots(inputs.B.codes + first, codes, 1, N, work.products + pending, kNoFetching);
    } else if (inputs.B.codes) {
      dots(static_cast<const int8_t*>(sequence.B) + kept, right, pending, N, work.products, kNoFetching);
      dots(inputs.B.codes + first, right, 1, N, work.products + pending, kNoFetching);
    } else {
      dots(static_cast<const float*>(sequence.B) + kept, right, pending, N, work.products, kNoFetching);
      dots(inputs.B.floats + first, right, 1, N, work.products + pending, kNoFetching);
    }
    for (int64_t i = 0; i <= pending; ++i) work.products[i] *= factor;
    return {C_factor, codes};
  }

  // out[p] = C . state[p], without the factor that is left out of work.C. Fetches the next head's pending x.
  void state_dots(int64_t head, const OfGroup& C, float* out) const {
    const int64_t N = layer.d_state, P = layer.headdim, start = head * P * N;
    const auto fetching = [&](int64_t element, int64_t at_once) {
      return Fetching(pending_x(head + 1), pending_x_bytes(), P * N * element, at_once);
    };
    switch (layer.state_type) {
      case StateType::float16:
        return dots(static_cast<const F16*>(sequence.state) + start, work.C, P, N, out, fetching(2, kAtOnce<F16>));
      case StateType::float32:
        return dots(static_cast<const float*>(sequence.state) + start, work.C, P, N, out, fetching(4, kAtOnce<float>));
      case StateType::int8:
        break;
    }
    const int8_t* codes = static_cast<const int8_t*>(sequence.state) + start;
    const bool exact = C.codes && layer.state_columns == 1;
    if (exact) code_dots(codes, C.codes, P, N, out, fetching(1, kCodesAtOnce));
    const Fetching floats = fetching(1, kAtOnce<int8_t>);
    for (int64_t p = 0; p < P;) {  // runs of rows that share scales
      const float* scale = scale_row(layer, head, p);
      int64_t end = p + 1;
      while (end < P && scale_row(layer, head, end) == scale) ++end;
      if (exact) {
        for (; p < end; ++p) out[p] *= scale[0];
        continue;
      }
      each_vector(N, [&](int64_t n, auto lanes) {
        const F32 factor = layer.state_columns > 1 ? load(scale + n, lanes) : F32::broadcast(scale[0]);
        store(load(work.C + n, lanes) * factor, work.scaled_C + n, lanes);
      });
      dots(codes + p * N, work.scaled_C, end - p, N, out + p, floats);
      p = end;
    }
  }

  const char* pending_x(int64_t head) const { return static_cast<const char*>(sequence.x) + head * layer.interval * x_bytes(); }
  int64_t x_bytes() const { return layer.headdim * (inputs.x.codes ? 1 : int64_t{sizeof(float)}); }
  int64_t pending_x_bytes() const { return (pending + 1) * x_bytes(); }

  // Fetches dt and decays of a head's pending tokens, and which scales its state has.
  void fetch_factors(int64_t head) const {
    const float* const of_tokens[] = {sequence.dt, sequence.decay, sequence.decay_low};
    for (const float* values : of_tokens) fetch(values + head * layer.interval, (pending + 1) * int64_t{sizeof(float)});
    if (layer.state_row) fetch(layer.state_row + head * layer.headdim, layer.headdim * int64_t{sizeof(int16_t)});
  }

  // Fetches what `read` needs of the first head at first.
  void fetch_first(int64_t head) const {
    const int64_t head_bytes = layer.headdim * layer.d_state * element_bytes(layer.state_type);
    fetch(static_cast<const char*>(sequence.state) + head * head_bytes, kNear);
    fetch(pending_x(head), pending_x_bytes());
    fetch_factors(head);
  }

  // A reduced state: it is read, and the tokens since its rounding are added.
  void read(int64_t head, const OfGroup& C) const {
    const int64_t P = layer.headdim, start = head * P, row = head * layer.interval;
    fetch_factors(head + 1);
    keep_token(layer, sequence, inputs.x, 0, head, pending, work.heads[head]);
    const float *dt = sequence.dt + row, *high = sequence.decay + row, *low = sequence.decay_low + row;
    const Decay now = {high[pending], low[pending]};
    each_vector(pending + 1, [&](int64_t i, auto lanes) {
      const F32 between = decay_between(now, load(high + i, lanes), load(low + i, lanes));
      store(between * load(dt + i, lanes) * load(work.products + i, lanes), work.share + i, lanes);
    });
    work.share[pending] += layer.D[head];
    float* carried = work.x;
    state_dots(head, C, carried);
    const F32 decay = F32::broadcast(exp(now.high) * C.factor);
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
  if (layer.interval) step.fetch_first(first);
  step.load_dt(first, last);
  for (int64_t head = first; head < last;) {
    const int64_t group = head / heads_a_group, end = smaller(last, (group + 1) * heads_a_group);
    if (!layer.interval) {
      step.load_B_and_C(group);
      for (; head < end; ++head) step.update(head);
      continue;
    }
    if (head % heads_a_group == 0) keep_B(layer, sequence, inputs.B, 0, group, step.pending);
    const Step::OfGroup C = step.load_products(group);
    for (; head < end; ++head) step.read(head, C);
  }
}

}  // namespace ssmquant::SSMQUANT_ISA
