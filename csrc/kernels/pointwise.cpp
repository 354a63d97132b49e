#include "kernels/pointwise.hpp"

#include <cmath>

#include "kernels/table.hpp"
#include "kernels/transform.hpp"
#include "kernels/values.hpp"
#include "simd/math.hpp"

namespace ssmquant::SSMQUANT_ISA {
namespace {

void quantize(const float* x, int64_t rows, int64_t channels, Scale reciprocal, int8_t* codes) {
  for (int64_t r = 0; r < rows; ++r) {
    emit(x + r * channels, channels, {codes, nullptr, reciprocal, channels}, r);
  }
}

void round_rows(float* x, int64_t stride, int64_t rows, int64_t channels, Scale scale, Scale reciprocal) {
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    each_vector(channels, [&](int64_t c, auto lanes) {
      store(round_clamp(load(x + c, lanes) * at(reciprocal, c, lanes)) * at(scale, c, lanes), x + c, lanes);
    });
  }
}

float absmax(const float* x, int64_t channels) {
  F32 largest = F32::zero();
  each_vector(channels, [&](int64_t c, auto lanes) { largest = max(largest, abs(load(x + c, lanes))); });
  return largest.max();
}

void quantize_per_token(const float* x, int64_t rows, int64_t channels, int bits, int8_t* codes, float* scale) {
  constexpr double smallest = 0x1p-126, largest = 0x1p126;  // numerics.scale_from_absmax
  const float limit = static_cast<float>((1 << (bits - 1)) - 1);
  for (int64_t r = 0; r < rows; ++r, x += channels, codes += channels) {
    const double range = absmax(x, channels);
    double step = (range > 0.0 ? range : 1.0) / limit;
    step = step < smallest ? smallest : step > largest ? largest : step;
    scale[r] = static_cast<float>(step);
    const F32 reciprocal = F32::broadcast(1.0f / scale[r]), high = F32::broadcast(limit), low = F32::broadcast(-limit);
    each_vector(channels, [&](int64_t c, auto lanes) {
      store_codes(min(max(load(x + c, lanes) * reciprocal, low), high), codes + c, lanes);
    });
  }
}

// 1 / sqrt(mean square + eps)
float inverse_rms(float square_sum, int64_t channels, float eps) {
  return 1.0f / std::sqrt(square_sum / static_cast<float>(channels) + eps);
}

void rms_norm(float* x, int64_t stride, const float* addend, int64_t rows, int64_t channels, const float* weight, float eps,
              Output out) {
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    F32 squares = F32::zero();
    each_vector(channels, [&](int64_t c, auto lanes) {
      F32 v = load(x + c, lanes);
      if (addend) {
        v = v + load(addend + r * channels + c, lanes);
        store(v, x + c, lanes);
      }
      squares = fma(v, v, squares);
    });
    const F32 inverse = F32::broadcast(inverse_rms(squares.sum(), channels, eps));
    each_vector(channels, [&](int64_t c, auto lanes) {
      const F32 normal = load(x + c, lanes) * inverse;
      emit(weight ? normal * load(weight + c, lanes) : normal, out, r, c, lanes);
    });
  }
}

// row[c] = y[c] * silu(z[r, c]) * weight[c] (without one: 1); returns the sum of the squares before the weight, over channels
// [first, last).
float gated(const float* y, const Input& z, int64_t r, int64_t first, int64_t last, const float* weight, float* row) {
  F32 squares = F32::zero();
  each_vector(last - first, [&](int64_t at, auto lanes) {
    const int64_t c = first + at;
    const F32 v = load(y + c, lanes) * silu(value(z, r, c, lanes));
    store(weight ? v * load(weight + c, lanes) : v, row + c, lanes);
    squares = fma(v, v, squares);
  });
  return squares.sum();
}

void gate(const float* y, Input z, int64_t rows, int64_t channels, Hadamard hadamard, float* work, Output out) {
  for (int64_t r = 0; r < rows; ++r, y += channels) {
    gated(y, z, r, 0, channels, nullptr, work);
    hadamard.wanted ? transform(work, channels, hadamard, 1.0f, out, r) : emit(work, channels, out, r);
  }
}

void gated_rms_norm(const float* y, Input z, int64_t rows, int64_t channels, const float* weight, float eps,
                    int64_t group_size, Hadamard hadamard, float* work, Output out) {
  const bool one_group = group_size == channels;  // then its factor is the transform's
  for (int64_t r = 0; r < rows; ++r, y += channels) {
    float inverse = 1.0f;
    for (int64_t first = 0; first < channels; first += group_size) {
      inverse = inverse_rms(gated(y, z, r, first, first + group_size, weight, work), group_size, eps);
      if (one_group && hadamard.wanted) break;
      const F32 factor = F32::broadcast(inverse);
      each_vector(group_size, [&](int64_t at, auto lanes) {
        store(load(work + first + at, lanes) * factor, work + first + at, lanes);
      });
    }
    hadamard.wanted ? transform(work, channels, hadamard, one_group ? inverse : 1.0f, out, r) : emit(work, channels, out, r);
  }
}

void hadamard_rows(float* x, int64_t rows, int64_t channels, Hadamard hadamard) {
  const Output out = {nullptr, x, {}, channels};
  for (int64_t r = 0; r < rows; ++r) transform(x + r * channels, channels, hadamard, 1.0f, out, r);
}

}  // namespace

const PointwiseKernels pointwise = {&quantize, &round_rows, &quantize_per_token, &rms_norm, &gate, &gated_rms_norm, &hadamard_rows};

}  // namespace ssmquant::SSMQUANT_ISA
