// The rounding of a state after an interval of steps.
#include "kernels/product.hpp"
#include "kernels/ssd_work.hpp"
#include "simd/subnormals.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

struct Rounding {
  const SsdLayer& layer;
  const SsdSequence& sequence;
  const SsdInputs& like;
  const SsdWork& work;

  // B of the interval to work.B [interval, d_state]; returns the factor that is left out.
  float load_B(int64_t group) const {
    const int64_t N = layer.d_state;
    const Input kept = pending_rows(like.B, sequence.B, group, layer.interval, N, group * N);
    float factor = 1.0f;
    for (int64_t i = 0; i < layer.interval; ++i) factor = load_shared_scale(kept, i, 0, N, work.B + i * N);
    return factor;
  }

  void run(int64_t head, float B_factor) const {
    const int64_t P = layer.headdim, N = layer.d_state, row = head * layer.interval, start = head * P * N;
    const float *dt = sequence.dt + row, *high = sequence.decay + row, *low = sequence.decay_low + row;
    const Decay now = {high[layer.interval - 1], low[layer.interval - 1]};
    const Input kept = pending_rows(like.x, sequence.x, head, layer.interval, P, head * P);
    each_vector(layer.interval, [&](int64_t i, auto lanes) {
      const F32 between = decay_between(now, load(high + i, lanes), load(low + i, lanes));
      store(between * load(dt + i, lanes) * F32::broadcast(B_factor), work.share + i, lanes);
    });
    // x times what the state takes of it: [headdim, tokens].
    transposed(
        layer.interval, P, [&](int64_t i, int64_t p, auto lanes) { return value(kept, i, p, lanes); },
        [&](int64_t i, int64_t p, F32 x) { (x * F32::load(work.share + i)).store(work.weighted + p * work.tokens + i); });
    const F32 decay = F32::broadcast(exp(now.high));
    const int64_t element = element_bytes(layer.state_type);
    const char* const next_head = static_cast<const char*>(sequence.state) + P * N * element;
    const bool scaled = layer.state_type == StateType::int8;
    for (int64_t p = 0; p < P;) {  // runs of rows that share scales
      int64_t end = scaled ? p + 1 : P;
      const float* scale = scaled ? scale_row(layer, head, p) : nullptr;
      while (end < P && scale_row(layer, head, end) == scale) ++end;
      if (scaled) {
        each_vector(N, [&](int64_t n, auto lanes) {
          const F32 step = layer.state_columns > 1 ? load(scale + n, lanes) : F32::broadcast(scale[0]);
          store(step, work.scale + n, lanes);
          store(F32::broadcast(1.0f) / step, work.reciprocal + n, lanes);
        });
      }
      each_block(end - p, (N + F32::width - 1) / F32::width, [&](int64_t r0, auto rows, int64_t n0, auto vectors) {
        Sums<rows.number, vectors.number> sums;
        // body(place in the state, column, sum) for the vectors of the block.
        const auto each = [&](const auto& body) SSMQUANT_INLINE {
          sums.each([&](auto r, auto i, F32& sum) SSMQUANT_INLINE {
            const int64_t n = n0 + i * F32::width, at = start + (p + r0 + r) * N + n;
            N - n >= F32::width ? body(at, n, sum, All{}) : body(at, n, sum, First{static_cast<int>(N - n)});
          });
        };
        each([&](int64_t at, int64_t n, F32& sum, auto lanes) {
          __builtin_prefetch(next_head + at * element);
          const F32 x = read_state(layer.state_type, sequence.state, at, lanes);
          sum = (scaled ? x * load(work.scale + n, lanes) : x) * decay;
        });
        sums.add(work.weighted + (p + r0) * work.tokens, work.tokens, work.B + n0, N, layer.interval);
        each([&](int64_t at, int64_t n, F32& sum, auto lanes) {
          write_state(layer.state_type, scaled ? sum * load(work.reciprocal + n, lanes) : sum, sequence.next, at, lanes);
        });
      });
      p = end;
    }
  }
};

}  // namespace

void ssd_round(const SsdLayer& layer, const SsdSequence& sequence, const SsdInputs& like, int64_t first, int64_t last,
               float* memory) {
  const FlushSubnormals flush;
  const SsdWork work(layer, memory);
  const Rounding rounding = {layer, sequence, like, work};
  const int64_t heads_a_group = layer.heads / layer.groups;
  for (int64_t head = first; head < last;) {
    const int64_t group = head / heads_a_group, end = smaller(last, (group + 1) * heads_a_group);
    const float B_factor = rounding.load_B(group);
    for (; head < end; ++head) rounding.run(head, B_factor);
  }
}

}  // namespace ssmquant::SSMQUANT_ISA
