// The scans in pieces: prefills and steps of any lengths against a loop over tokens in float64, and against each other's
// states. (The ops' tests scan whole sequences.)
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/kernels.hpp"
#include "tests/test.hpp"

namespace ssmquant {
namespace {

using tests::Draw;

struct Shape {
  int64_t heads, headdim, groups, d_state;
  StateType type;
  int64_t interval;
  bool codes;        // inputs
  bool one_scale;    // of each input, and of the state a row
};

double softplus(double x) { return std::log1p(std::exp(-std::fabs(x))) + std::max(x, 0.0); }

float half_rounded(double x) {
  // To 11 bits, the subnormal numbers' step at least.
  int exponent;
  std::frexp(x, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - 11, -24));
  return static_cast<float>(std::nearbyint(x / step) * step);
}

std::vector<float> aligned(int64_t floats) { return std::vector<float>(static_cast<size_t>(floats + 16)); }

float* start(std::vector<float>& memory) {
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(float);
}

// Codes or floats with `channels` a row, and what they stand for.
struct Values {
  std::vector<int8_t> codes;
  std::vector<float> floats, scale;
  int64_t channels, stride;

  Values(Draw& draw, int64_t tokens, int64_t channels, bool coded, bool one_scale, float size)
      : channels(channels), stride(channels + 3) {
    if (coded) {
      codes = draw.codes(tokens * stride);
      scale = draw.floats(one_scale ? 1 : channels, size / 127, size / 63);
    } else {
      floats = draw.floats(tokens * stride, -2 * size, 2 * size);
    }
  }
  Input from(int64_t token) const {
    Input input = {};
    input.stride = stride;
    if (codes.empty()) {
      input.floats = floats.data() + token * stride;
    } else {
      input.codes = codes.data() + token * stride;
      input.scale = {scale.data(), scale.size() > 1 ? 1 : 0};
    }
    return input;
  }
  double at(int64_t token, int64_t c) const {
    if (codes.empty()) return floats[token * stride + c];
    return static_cast<double>(codes[token * stride + c]) * scale[scale.size() > 1 ? c : 0];
  }
};

// A state at rest of any type.
struct State {
  StateType type;
  std::vector<int8_t> codes;
  std::vector<uint16_t> halves;
  std::vector<float> floats;

  State(StateType type, int64_t size) : type(type) {
    if (type == StateType::int8) codes.resize(size);
    if (type == StateType::float16) halves.resize(size);
    if (type == StateType::float32) floats.resize(size);
  }
  void* data() {
    if (type == StateType::int8) return codes.data();
    if (type == StateType::float16) return halves.data();
    return floats.data();
  }
  double at(int64_t i) const {
    if (type == StateType::int8) return codes[i];
    if (type == StateType::float32) return floats[i];
    const int exponent = halves[i] >> 10 & 31, mantissa = halves[i] & 1023;
    const double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    return halves[i] & 0x8000 ? -size : size;
  }
};

// Rounds a float64 state as a type is kept; the result is in units of `scale`. Lowers `margin` to the distance from the middle
// between two neighbours, in units of their distance.
double kept(StateType type, double h, double scale, double* margin) {
  if (type == StateType::float32) return h;
  if (type == StateType::int8) {
    const double steps = h / scale, code = std::min(127.0, std::max(-127.0, std::nearbyint(steps)));
    if (std::fabs(steps) < 127.5) *margin = std::min(*margin, 0.5 - std::fabs(steps - code));
    return code;
  }
  const double rounded = half_rounded(h);
  int exponent;
  std::frexp(h * (1 - 0x1p-10), &exponent);
  *margin = std::min(*margin, 0.5 - std::fabs(h - rounded) / std::ldexp(1.0, std::max(exponent - 11, -24)));
  return rounded;
}

void check_ratio(const std::vector<float>& got, const std::vector<double>& expected, int64_t terms, const char* what) {
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  const double ratio = std::sqrt(error / size), limit = 4 * 0x1p-23 * std::sqrt(static_cast<double>(terms));
  CHECK(ratio <= limit, "%s: error ratio %g, at most %g", what, ratio, limit);
}

// Lengths of the calls that a sequence comes in.
std::vector<int64_t> pieces(Draw& draw, int64_t tokens) {
  std::vector<int64_t> all;
  while (tokens > 0) {
    const int64_t piece = std::min<int64_t>(tokens, draw.below(2) ? 1 : 1 + draw.below(90));
    all.push_back(piece);
    tokens -= piece;
  }
  return all;
}

// One layer with its inputs, and the exact results.
struct Ssd {
  Shape s;
  int64_t tokens;
  Values x, dt, B, C;
  std::vector<float> A, D, bias, scale;
  std::vector<int16_t> row;
  State state;
  std::vector<double> y, final_state;
  double margin = 1.0;

  Ssd(Draw draw, Shape s, int64_t tokens)
      : s(s),
        tokens(tokens),
        x(draw, tokens, s.heads * s.headdim, s.codes, s.one_scale, 1.0f),
        dt(draw, tokens, s.heads, s.codes, s.one_scale, 1.0f),
        B(draw, tokens, s.groups * s.d_state, s.codes, s.one_scale, 1.0f),
        C(draw, tokens, s.groups * s.d_state, s.codes, s.one_scale, 1.0f),
        A(draw.floats(s.heads, -4.0f, -0.1f)),
        D(draw.floats(s.heads, -2.0f, 2.0f)),
        bias(draw.floats(s.heads, -4.0f, 1.0f)),
        scale(draw.floats(3 * (s.one_scale ? 1 : s.d_state), 0.02f, 0.05f)),
        row(s.heads * s.headdim),
        state(s.type, s.heads * s.headdim * s.d_state) {
    for (int16_t& r : row) r = static_cast<int16_t>(draw.below(3));
    scan();
  }

  double scale_at(int64_t inner, int64_t n) const {
    return s.one_scale ? scale[row[inner]] : scale[row[inner] * s.d_state + n];
  }

  void scan() {
    const int64_t inner = s.heads * s.headdim;
    std::vector<double> h(inner * s.d_state);
    final_state.assign(h.size(), 0.0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < inner; ++i) {
        const int64_t head = i / s.headdim, group = head / (s.heads / s.groups);
        const double step = std::min(2.0, std::max(0.001, softplus(dt.at(t, head) + bias[head])));
        double sum = 0.0;
        for (int64_t n = 0; n < s.d_state; ++n) {
          double& element = h[i * s.d_state + n];
          element = std::exp(step * A[head]) * element + step * x.at(t, i) * B.at(t, group * s.d_state + n);
          sum += element * C.at(t, group * s.d_state + n);
        }
        y.push_back(sum + D[head] * x.at(t, i));
      }
      if (s.interval && (t + 1) % s.interval) continue;
      for (size_t e = 0; e < h.size(); ++e) {
        const double unit = s.type == StateType::int8 ? scale_at(e / s.d_state, e % s.d_state) : 1.0;
        final_state[e] = kept(s.type, h[e], unit, &margin);
        h[e] = final_state[e] * unit;
      }
    }
  }

  SsdLayer layer() const {
    return {s.heads, s.headdim, s.groups,   s.d_state,    A.data(),   D.data(),
            bias.data(), 0.001f,    2.0f, s.type, s.interval, scale.data(), row.data(), s.one_scale ? 1 : s.d_state};
  }
};

void check_ssd(Shape shape, int64_t tokens, uint32_t seed) {
  Ssd exact(Draw(seed), shape, tokens);
  while (exact.margin < 3e-4) exact = Ssd(Draw(seed += 1000), shape, tokens);
  Draw draw(seed);
  const SsdKernels& kernel = kernels().ssd;
  const SsdLayer layer = exact.layer();
  const int64_t inner = shape.heads * shape.headdim, y_stride = inner + 5;
  std::vector<float> x(shape.interval * inner), B(shape.interval * shape.groups * shape.d_state);
  std::vector<float> dt(shape.interval * shape.heads), decay(dt.size()), decay_low(dt.size());
  std::vector<float> work = aligned(kernel.work_floats(layer)), y(inner * tokens);
  State other(shape.type, inner * shape.d_state);
  SsdSequence sequence = {exact.state.data(), exact.state.data(), x.data(),         B.data(),
                          dt.data(),          decay.data(),       decay_low.data(), 0};
  int64_t token = 0;
  for (const int64_t length : pieces(draw, tokens)) {
    const SsdInputs inputs = {exact.x.from(token), exact.dt.from(token), exact.B.from(token), exact.C.from(token), length};
    // The next state takes the old one's place, or is another.
    const bool in_place = draw.below(2);
    State& next = in_place ? exact.state : other;
    sequence.next = next.data();
    std::vector<float> rows(length * y_stride);
    const int64_t cut = draw.below(static_cast<int>(shape.heads) + 1);
    if (length == 1 && draw.below(4)) {
      if (cut > 0) kernel.step(layer, sequence, inputs, 0, cut, start(work), rows.data());
      if (cut < shape.heads) kernel.step(layer, sequence, inputs, cut, shape.heads, start(work), rows.data());
      if (shape.interval && sequence.count + 1 == shape.interval) {
        sequence.count = shape.interval;
        kernel.round(layer, sequence, inputs, 0, cut, start(work));
        kernel.round(layer, sequence, inputs, cut, shape.heads, start(work));
        sequence.count = shape.interval - 1;
      }
    } else {
      std::vector<float> shared = aligned(kernel.shared_floats(layer, sequence, length));
      for (int64_t item = kernel.chunks(layer, sequence, length) * shape.groups; item-- > 0;) {
        kernel.prepare(layer, sequence, inputs, item, item + 1, start(shared));
      }
      kernel.prefill(layer, sequence, inputs, start(shared), cut, shape.heads, start(work), rows.data(), y_stride);
      kernel.prefill(layer, sequence, inputs, start(shared), 0, cut, start(work), rows.data(), y_stride);
    }
    for (int64_t t = 0; t < length; ++t) {
      std::copy_n(rows.data() + t * y_stride, inner, y.data() + (token + t) * inner);
    }
    token += length;
    if (!shape.interval || sequence.count + length >= shape.interval) {
      if (!in_place) std::swap(exact.state, other);
      sequence.state = exact.state.data();
    }
    if (shape.interval) sequence.count = (sequence.count + length) % shape.interval;
  }
  check_ratio(y, exact.y, tokens * shape.d_state, "y");
  std::vector<float> got(exact.final_state.size());
  for (size_t i = 0; i < got.size(); ++i) {
    got[i] = static_cast<float>(exact.state.at(i));
    CHECK(shape.type != StateType::int8 || got[i] == exact.final_state[i], "state %zu: %g, not %g", i, got[i],
          exact.final_state[i]);
  }
  // Half-precision numbers were rounded alike, since no margin was small.
  if (shape.interval <= tokens) check_ratio(got, exact.final_state, tokens, "state");
}

TEST(ssd) {
  uint32_t seed = 1;
  for (const bool codes : {false, true}) {
    for (const bool one_scale : {false, true}) {
      for (const int64_t tokens : {1, 3, 40, 200}) {
        check_ssd({2, 8, 1, 16, StateType::float32, 0, codes, one_scale}, tokens, ++seed);
        check_ssd({4, 5, 2, 7, StateType::float32, 0, codes, one_scale}, tokens, ++seed);
        check_ssd({2, 16, 1, 3, StateType::float16, 16, codes, one_scale}, tokens, ++seed);
        check_ssd({2, 3, 2, 5, StateType::float16, 1, codes, one_scale}, std::min<int64_t>(tokens, 50), ++seed);
        check_ssd({3, 20, 1, 9, StateType::int8, 64, codes, one_scale}, tokens, ++seed);
        check_ssd({2, 33, 1, 17, StateType::int8, 64, codes, one_scale}, tokens, ++seed);
        check_ssd({2, 4, 2, 4, StateType::int8, 70, codes, one_scale}, tokens, ++seed);
        check_ssd({2, 4, 1, 4, StateType::int8, 3, codes, one_scale}, tokens, ++seed);
      }
    }
  }
}

// The same for Mamba-1's scan.
struct Scan {
  Shape s;  // heads: channels
  int64_t tokens;
  Values x, dt, B, C;
  std::vector<float> A, D, bias, scale;
  State state;
  std::vector<double> y, final_state;
  double margin = 1.0;

  Scan(Draw draw, Shape s, int64_t tokens)
      : s(s),
        tokens(tokens),
        x(draw, tokens, s.heads, s.codes, s.one_scale, 1.0f),
        dt(draw, tokens, s.heads, s.codes, s.one_scale, 1.0f),
        B(draw, tokens, s.d_state, s.codes, s.one_scale, 1.0f),
        C(draw, tokens, s.d_state, s.codes, s.one_scale, 1.0f),
        A(draw.floats(s.d_state * s.heads, -4.0f, -0.1f)),
        D(draw.floats(s.heads, -2.0f, 2.0f)),
        bias(draw.floats(s.heads, -4.0f, 1.0f)),
        scale(draw.floats(s.one_scale ? 1 : s.d_state * s.heads, 0.02f, 0.05f)),
        state(s.type, s.d_state * s.heads) {
    std::vector<double> h(s.d_state * s.heads);
    final_state.assign(h.size(), 0.0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < s.heads; ++c) {
        const double step = softplus(dt.at(t, c) + bias[c]);
        double sum = 0.0;
        for (int64_t n = 0; n < s.d_state; ++n) {
          double& element = h[n * s.heads + c];
          element = std::exp(step * A[n * s.heads + c]) * element + step * x.at(t, c) * B.at(t, n);
          sum += element * C.at(t, n);
        }
        y.push_back(sum + D[c] * x.at(t, c));
      }
      if (s.interval && (t + 1) % s.interval) continue;
      for (size_t e = 0; e < h.size(); ++e) {
        const double unit = s.type == StateType::int8 ? scale[s.one_scale ? 0 : e] : 1.0;
        final_state[e] = kept(s.type, h[e], unit, &margin);
        h[e] = final_state[e] * unit;
      }
    }
  }

  ScanLayer layer() const {
    return {s.heads, s.d_state,  A.data(),     D.data(),
            bias.data(), s.type, s.interval, scale.data(), s.one_scale ? 0 : s.heads, s.one_scale ? 0 : 1};
  }
};

void check_scan(Shape shape, int64_t tokens, uint32_t seed) {
  Scan exact(Draw(seed), shape, tokens);
  while (exact.margin < 3e-4) exact = Scan(Draw(seed += 1000), shape, tokens);
  Draw draw(seed);
  const ScanKernels& kernel = kernels().selective_scan;
  const ScanLayer layer = exact.layer();
  const int64_t channels = shape.heads, y_stride = channels + 5;
  std::vector<float> x(shape.interval * channels), B(shape.interval * shape.d_state), dt(shape.interval * channels);
  std::vector<float> work = aligned(kernel.work_floats(layer, channels)), y(channels * tokens);
  State other(shape.type, channels * shape.d_state);
  ScanSequence sequence = {exact.state.data(), exact.state.data(), x.data(), B.data(), dt.data(), 0};
  int64_t token = 0;
  for (const int64_t length : pieces(draw, tokens)) {
    const ScanInputs inputs = {exact.x.from(token), exact.dt.from(token), exact.B.from(token), exact.C.from(token), length};
    const bool in_place = draw.below(2);
    State& next = in_place ? exact.state : other;
    sequence.next = next.data();
    std::vector<float> rows(length * y_stride);
    const int64_t cut = draw.below(static_cast<int>(channels) + 1);
    kernel.run(layer, sequence, inputs, cut, channels, start(work), rows.data(), y_stride);
    kernel.run(layer, sequence, inputs, 0, cut, start(work), rows.data(), y_stride);
    kernel.finish(layer, sequence, inputs);
    for (int64_t t = 0; t < length; ++t) {
      std::copy_n(rows.data() + t * y_stride, channels, y.data() + (token + t) * channels);
    }
    token += length;
    if (!shape.interval || sequence.count + length >= shape.interval) {
      if (!in_place) std::swap(exact.state, other);
      sequence.state = exact.state.data();
    }
    if (shape.interval) sequence.count = (sequence.count + length) % shape.interval;
  }
  check_ratio(y, exact.y, tokens * shape.d_state, "y");
  std::vector<float> got(exact.final_state.size());
  for (size_t i = 0; i < got.size(); ++i) {
    got[i] = static_cast<float>(exact.state.at(i));
    CHECK(shape.type != StateType::int8 || got[i] == exact.final_state[i], "state %zu: %g, not %g", i, got[i],
          exact.final_state[i]);
  }
  // Half-precision numbers were rounded alike, since no margin was small.
  if (shape.interval <= tokens) check_ratio(got, exact.final_state, tokens, "state");
}

TEST(selective_scan) {
  uint32_t seed = 1;
  for (const bool codes : {false, true}) {
    for (const bool one_scale : {false, true}) {
      for (const int64_t tokens : {1, 3, 40, 150}) {
        check_scan({33, 0, 0, 16, StateType::float32, 0, codes, one_scale}, tokens, ++seed);
        check_scan({7, 0, 0, 5, StateType::float32, 0, codes, one_scale}, tokens, ++seed);
        check_scan({3, 0, 0, 16, StateType::float16, 1, codes, one_scale}, std::min<int64_t>(tokens, 30), ++seed);
        check_scan({18, 0, 0, 3, StateType::float16, 16, codes, one_scale}, tokens, ++seed);
        check_scan({3, 0, 0, 16, StateType::int8, 4, codes, one_scale}, std::min<int64_t>(tokens, 60), ++seed);
        check_scan({20, 0, 0, 4, StateType::int8, 70, codes, one_scale}, tokens, ++seed);
      }
    }
  }
}

}  // namespace
}  // namespace ssmquant
