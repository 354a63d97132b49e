// The functions that the other kernels are made of, and rows of every width: nothing is written behind a row's end.
#include <cmath>
#include <cstring>

#include "kernels/kernels.hpp"
#include "tests/test.hpp"

namespace ssmquant {
namespace {

using tests::Draw;

constexpr int8_t kGuard = 99;

double silu(double x) { return x / (1.0 + std::exp(-x)); }

int8_t code(float x, float reciprocal) {
  return static_cast<int8_t>(std::nearbyint(std::fmin(std::fmax(x * reciprocal, -127.0f), 127.0f)));
}

// Floats out are close to the exact ones, and codes out are the floats' codes; what lies behind the row stays.
void check_outputs(const std::vector<float>& floats, const std::vector<int8_t>& codes, const std::vector<double>& exact,
                   float reciprocal, double limit) {
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += (floats[i] - exact[i]) * (floats[i] - exact[i]);
    size += exact[i] * exact[i];
    CHECK(codes[i] == code(floats[i], reciprocal), "element %zu of %zu", i, exact.size());
  }
  CHECK(std::sqrt(error) <= limit * std::sqrt(size), "error ratio %g", std::sqrt(error / size));
  for (size_t i = exact.size(); i < codes.size(); ++i) {
    CHECK(codes[i] == kGuard && floats[i] == kGuard, "element %zu behind %zu was written", i, exact.size());
  }
}

// Runs a kernel twice, for floats and for codes.
template <class Run>
void check(const std::vector<double>& exact, int64_t stride, float reciprocal, double limit, const Run& run) {
  std::vector<float> floats(exact.size() + 64, kGuard);
  std::vector<int8_t> codes(exact.size() + 64, kGuard);
  run(Output{nullptr, floats.data(), {nullptr, 0}, stride});
  run(Output{codes.data(), nullptr, {&reciprocal, 0}, stride});
  check_outputs(floats, codes, exact, reciprocal, limit);
}

TEST(pointwise_widths) {
  Draw draw(1);
  const Hadamard none = {false, 1, nullptr};
  for (int64_t channels = 1; channels < 70; ++channels) {
    std::vector<float> y = draw.floats(channels, -3.0f, 3.0f), weight = draw.floats(channels, 0.5f, 2.0f), work(channels);
    const std::vector<int8_t> z = draw.codes(channels);
    const std::vector<float> z_scale = draw.floats(channels, 0.01f, 0.1f);
    const Input gates = {z.data(), nullptr, {z_scale.data(), 1}, channels};
    std::vector<double> gated(channels), normed(channels), rms(channels);
    double squares = 0.0, y_squares = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      gated[c] = y[c] * silu(static_cast<double>(z[c]) * z_scale[c]);
      squares += gated[c] * gated[c];
      y_squares += static_cast<double>(y[c]) * y[c];
    }
    for (int64_t c = 0; c < channels; ++c) {
      normed[c] = gated[c] / std::sqrt(squares / channels + 1e-5) * weight[c];
      rms[c] = y[c] / std::sqrt(y_squares / channels + 1e-5) * weight[c];
    }
    const double limit = 4 * 0x1p-23 * std::sqrt(static_cast<double>(channels));
    const PointwiseKernels& kernel = kernels().pointwise;
    check(gated, channels, 20.0f, 4 * 0x1p-23, [&](Output out) {
      kernel.gate(y.data(), gates, 1, channels, none, work.data(), out);
    });
    check(normed, channels, 20.0f, limit, [&](Output out) {
      kernel.gated_rms_norm(y.data(), gates, 1, channels, weight.data(), 1e-5f, channels, none, work.data(), out);
    });
    check(rms, channels, 20.0f, limit, [&](Output out) {
      kernel.rms_norm(y.data(), channels, nullptr, 1, channels, weight.data(), 1e-5f, out);
    });
  }
}

TEST(residual) {
  Draw draw(2);
  const int64_t channels = 37;
  std::vector<float> x = draw.floats(2 * channels, -3.0f, 3.0f), sum = x, out(2 * channels), same(2 * channels);
  const std::vector<float> addend = draw.floats(2 * channels, -3.0f, 3.0f);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += addend[i];
  const PointwiseKernels& kernel = kernels().pointwise;
  const Output to = {nullptr, out.data(), {nullptr, 0}, channels}, again = {nullptr, same.data(), {nullptr, 0}, channels};
  kernel.rms_norm(x.data(), channels, addend.data(), 2, channels, nullptr, 1e-5f, to);
  CHECK(x == sum, "the residual stream is the sum");
  kernel.rms_norm(sum.data(), channels, nullptr, 2, channels, nullptr, 1e-5f, again);
  CHECK(out == same, "and the norm is the sum's");
}

TEST(silu_everywhere) {
  // A gate of 1 * silu(z) over the range of float32, in steps of a few units in the last place.
  std::vector<float> z;
  for (double x = 1e-30; x < 1e30; x *= 1.0 + 1.0 / 64) {
    z.push_back(static_cast<float>(x));
    z.push_back(static_cast<float>(-x));
  }
  const int64_t channels = static_cast<int64_t>(z.size());
  std::vector<float> one(z.size(), 1.0f), out(z.size()), work(z.size());
  kernels().pointwise.gate(one.data(), {nullptr, z.data(), {nullptr, 0}, channels}, 1, channels, {false, 1, nullptr},
                           work.data(), {nullptr, out.data(), {nullptr, 0}, channels});
  for (size_t i = 0; i < z.size(); ++i) {
    const double exact = silu(z[i]), far = std::fmax(2.0, 1.5 - z[i]);  // units in the last place
    if (std::fabs(exact) < 1e-34) {
      CHECK(std::fabs(out[i]) <= 2 * std::fabs(exact) + std::fabs(z[i]) * 0x1p-124, "silu(%g) = %g", z[i], out[i]);
    } else {
      CHECK(std::fabs(out[i] - exact) <= far * 0x1p-23 * std::fabs(exact), "silu(%g) = %.9g, not %.9g", z[i], out[i], exact);
    }
  }
}

TEST(hadamard_is_orthonormal) {
  // With every entry of the base matrix known, twice the transform of a power of two is the identity.
  Draw draw(3);
  for (int64_t n = 1; n <= 4096; n *= 2) {
    const std::vector<float> x = draw.floats(2 * n, -1.0f, 1.0f);
    std::vector<float> y = x;
    const Hadamard hadamard = {true, 1, nullptr};
    kernels().pointwise.hadamard(y.data(), 2, n, hadamard);
    double sum = 0.0, first = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    first = y[0] * std::sqrt(static_cast<double>(n));
    CHECK(std::fabs(first - sum) < 1e-3, "the first row of n = %d adds up: %g, not %g", static_cast<int>(n), first, sum);
    kernels().pointwise.hadamard(y.data(), 2, n, hadamard);
    for (size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(y[i] - x[i]) < 1e-5f, "n = %d", static_cast<int>(n));
  }
}

TEST(conv_ranges) {
  Draw draw(4);
  for (const int64_t channels : {1, 15, 16, 64, 100, 321}) {
    for (const int64_t taps : {2, 4, 5}) {
      const int64_t tokens = 1 + draw.below(70), stride = channels + draw.below(4), rows = tokens + taps - 1;
      const std::vector<int8_t> x = draw.codes(rows * stride), w = draw.codes(taps * channels);
      const std::vector<float> scale = draw.floats(channels, 1e-4f, 2e-4f), bias = draw.floats(channels, -1.0f, 1.0f);
      const Conv conv = {channels, taps, w.data(), nullptr, {scale.data(), 1}, bias.data()};
      const float one = 1.0f;
      const Input inputs = {x.data() + (taps - 1) * stride, nullptr, {&one, 0}, stride};
      std::vector<double> exact(tokens * channels);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t c = 0; c < channels; ++c) {
          int sum = 0;
          for (int64_t k = 0; k < taps; ++k) sum += x[(t + k) * stride + c] * w[k * channels + c];
          exact[t * channels + c] = silu(static_cast<float>(sum) * scale[c] + bias[c]);
        }
      }
      const int64_t cut = draw.below(static_cast<int>(channels) + 1);
      check(exact, channels, 30.0f, 4 * 0x1p-23, [&](Output out) {
        kernels().conv.run(conv, inputs, tokens, 0, cut, out);
        kernels().conv.run(conv, inputs, tokens, cut, channels, out);
      });
    }
  }
}

}  // namespace
}  // namespace ssmquant
