#include "kernels/ssd_work.hpp"

#include "kernels/product.hpp"

namespace ssmquant::SSMQUANT_ISA {

void load_state_scale(const SsdLayer& layer, int64_t head, const SsdWork& work) {
  if (work.width > layer.headdim) memset(work.scale, 0, sizeof(float) * static_cast<size_t>(layer.d_state * work.width));
  for (int64_t p = 0; p < layer.headdim;) {  // runs of rows that share scales
    const float* row = scale_row(layer, head, p);
    int64_t end = p + 1;
    while (end < layer.headdim && scale_row(layer, head, end) == row) ++end;
    for (int64_t n = 0; n < layer.d_state; ++n) {
      const float scale = row[layer.state_columns > 1 ? n : 0];
      const F32 scales = F32::broadcast(scale), reciprocals = F32::broadcast(1.0f / scale);
      const int64_t to = n * work.width + p;
      each_vector(end - p, [&](int64_t at, auto lanes) {
        store(scales, work.scale + to + at, lanes);
        store(reciprocals, work.reciprocal + to + at, lanes);
      });
    }
    p = end;
  }
}

void load_state(const SsdLayer& layer, const void* state, int64_t head, const SsdWork& work) {
  const int64_t start = head * layer.headdim * layer.d_state;
  const bool scaled = layer.state_type == StateType::int8;
  transposed(
      layer.headdim, layer.d_state,
      [&](int64_t p, int64_t n, auto lanes) {
        return read_state(layer.state_type, state, start + p * layer.d_state + n, lanes);
      },
      [&](int64_t p, int64_t n, F32 x) {
        const int64_t to = n * work.width + p;
        (scaled ? x * F32::load(work.scale + to) : x).store(work.state + to);
      });
  // Columns behind headdim have taken part in products since; they must start as numbers.
  for (int64_t p = (layer.headdim + F32::width - 1) / F32::width * F32::width; p < work.width; p += F32::width) {
    for (int64_t n = 0; n < layer.d_state; ++n) F32::zero().store(work.state + n * work.width + p);
  }
}

void store_state(const SsdLayer& layer, const SsdWork& work, int64_t head, void* state) {
  const int64_t start = head * layer.headdim * layer.d_state;
  const bool scaled = layer.state_type == StateType::int8;
  F32 square[F32::width];
  for (int64_t p = 0; p < layer.headdim; p += F32::width) {
    const int64_t height = smaller(F32::width, layer.headdim - p);
    each_vector(layer.d_state, [&](int64_t n, auto lanes) {
      const int64_t wide = smaller(F32::width, layer.d_state - n);
      for (int64_t c = 0; c < wide; ++c) {
        const int64_t from = (n + c) * work.width + p;
        square[c] = F32::load(work.state + from);
        if (scaled) square[c] = square[c] * F32::load(work.reciprocal + from);
      }
      for (int64_t c = wide; c < F32::width; ++c) square[c] = F32::zero();
      transpose(square);
      for (int64_t r = 0; r < height; ++r) {
        write_state(layer.state_type, square[r], state, start + (p + r) * layer.d_state + n, lanes);
      }
    });
  }
}

void update_state(const SsdLayer& layer, const SsdWork& work, float decay, const float* B, int64_t B_stride, int64_t k,
                  bool rounded) {
  const F32 kept = F32::broadcast(decay);
  const bool scaled = layer.state_type == StateType::int8;
  each_block(layer.d_state, work.width / F32::width, [&](int64_t n, auto rows, int64_t p, auto vectors) {
    Sums<rows.number, vectors.number> sums;
    const int64_t width = work.width, first = n * width + p;
    float* state = work.state + first;
    sums.each([&](auto r, auto i, F32& sum) SSMQUANT_INLINE { sum = F32::load(state + r * width + i * F32::width) * kept; });
    sums.add(B + n * B_stride, B_stride, work.x + p, width, k);
    if (rounded && scaled) {
      const float *reciprocal = work.reciprocal + first, *scale = work.scale + first;
      sums.each([&](auto r, auto i, F32& sum) SSMQUANT_INLINE {
        const int64_t at = r * width + i * F32::width;
        sum = round_clamp(sum * F32::load(reciprocal + at)) * F32::load(scale + at);
      });
    } else if (rounded) {
      sums.each([](auto, auto, F32& sum) SSMQUANT_INLINE { sum = round_f16(sum); });
    }
    sums.each([&](auto r, auto i, F32& sum) SSMQUANT_INLINE { sum.store(state + r * width + i * F32::width); });
  });
}

bool has_shared_scale(const Input& input, int64_t first, int64_t count) {
  if (!input.codes) return false;
  if (!input.scale.step) return true;
  const float* scale = input.scale.values + first;
  for (int64_t c = 1; c < count; ++c) {
    if (scale[c] != scale[0]) return false;
  }
  return true;
}

float load_shared_scale(const Input& input, int64_t row, int64_t first, int64_t count, float* to) {
  const bool shared = has_shared_scale(input, first, count);
  each_vector(count, [&](int64_t c, auto lanes) {
    const F32 x = shared ? load(input.codes + row * input.stride + first + c, lanes) : value(input, row, first + c, lanes);
    store(x, to + c, lanes);
  });
  return shared ? input.scale.values[input.scale.step * first] : 1.0f;
}

namespace {

// Copies channels [first, first + count) of a row to row `place` of `to` as what they are.
void copy_row(const Input& input, int64_t row, int64_t first, int64_t count, void* to, int64_t place) {
  const size_t size = static_cast<size_t>(count);
  if (input.codes) {
    memcpy(static_cast<int8_t*>(to) + place * count, input.codes + row * input.stride + first, size);
  } else {
    memcpy(static_cast<float*>(to) + place * count, input.floats + row * input.stride + first, sizeof(float) * size);
  }
}

}  // namespace

void keep_token(const SsdLayer& layer, const SsdSequence& sequence, const Input& x, int64_t token, int64_t head, int64_t row,
                float dt) {
  const int64_t start = head * layer.interval, at = start + row;
  const double before = row ? Decay{sequence.decay[at - 1], sequence.decay_low[at - 1]}.sum() : 0.0;
  const Decay decay = Decay::of(before + static_cast<double>(dt * layer.A[head]));
  sequence.dt[at] = dt;
  sequence.decay[at] = decay.high;
  sequence.decay_low[at] = decay.low;
  copy_row(x, token, head * layer.headdim, layer.headdim, sequence.x, at);
}

void keep_B(const SsdLayer& layer, const SsdSequence& sequence, const Input& B, int64_t token, int64_t group, int64_t row) {
  copy_row(B, token, group * layer.d_state, layer.d_state, sequence.B, group * layer.interval + row);
}

}  // namespace ssmquant::SSMQUANT_ISA
