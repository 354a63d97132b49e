// The linear kernels against loops without any order of their own, bit for bit.
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/kernels.hpp"
#include "runtime/thread_pool.hpp"
#include "tests/test.hpp"

namespace ssmquant {
namespace {

using tests::Draw;

struct Shape {
  int64_t rows, n, k;
  WeightType type;
  int64_t group;
};

// Bytes at a boundary of a cache line.
class Aligned {
 public:
  explicit Aligned(int64_t bytes) : memory_(new uint8_t[bytes + 64]) {
    data_ = memory_.get() + (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64) % 64;
  }
  uint8_t* data() const { return data_; }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  uint8_t* data_;
};

// A product with all its arguments, drawn at random.
struct Product {
  Shape shape;
  std::vector<int8_t> x, w, codes_out;
  std::vector<uint8_t> nibbles, grid;
  std::vector<float> x_scale, w_scale, bias, reciprocal, out;
  Aligned packed;
  Linear linear = {};

  Product(Draw& draw, Shape s, bool extreme)
      : shape(s), packed(kernels().linear.packed_bytes({nullptr, s.type, s.n, s.k, s.group})) {
    const LinearKernels& kernel = kernels().linear;
    const int64_t stride = s.k + draw.below(9), out_stride = s.n + draw.below(5);
    x = draw.codes(s.rows * stride + linear_overread);
    w = draw.codes(s.n * s.k);
    const int lowest = s.group ? -8 : -127, highest = s.group ? 7 : 127;
    if (s.group) {
      for (int8_t& code : w) code = static_cast<int8_t>(lowest + draw.below(highest - lowest + 1));
    }
    if (extreme) {
      for (int8_t& code : x) code = draw.below(2) ? 127 : -127;
      for (int8_t& code : w) code = static_cast<int8_t>(draw.below(2) ? highest : lowest);
      // Sums at both limits, and, of a group with its zero at the other end, all the way to them.
      std::memset(x.data(), 127, s.k);
      std::memset(w.data(), highest, s.k);
      if (s.rows > 1) std::memset(x.data() + stride, -127, s.k);
      if (s.n > 1) std::memset(w.data() + s.k, lowest, s.k);
    }
    x_scale = draw.floats(draw.below(2) ? s.rows : 1, 0.01f, 0.02f);
    w_scale = draw.floats(s.type == WeightType::int4 ? s.n * (s.k / s.group) : draw.below(2) ? s.n : 1, 0.001f, 0.002f);
    bias = draw.floats(s.n, -1.0f, 1.0f);
    reciprocal = draw.floats(draw.below(2) ? s.n : 1, 10.0f, 20.0f);
    out = draw.floats(s.rows * out_stride, -1.0f, 1.0f);
    codes_out = draw.codes(s.rows * out_stride);

    const int64_t panels = (s.n + kernel.panel - 1) / kernel.panel, middle = panels / 2;
    if (s.group) {
      nibbles.resize(s.n * s.k / 2);
      for (size_t i = 0; i < nibbles.size(); ++i) {
        nibbles[i] = static_cast<uint8_t>((w[2 * i] & 15) | (w[2 * i + 1] & 15) << 4);
      }
    }
    const auto pack_halves = [&](auto pack, const auto& factors) {
      pack(nibbles.data(), factors.data(), s.n, s.k, s.group, middle, panels, packed.data());
      pack(nibbles.data(), factors.data(), s.n, s.k, s.group, 0, middle, packed.data());
    };
    if (s.type == WeightType::int4) {
      pack_halves(kernel.pack_int4, w_scale);
    } else if (s.type == WeightType::int4_progressive) {
      for (int64_t group = 0; group < s.n * (s.k / s.group); ++group) {
        const int64_t row = group / (s.k / s.group);
        const int drawn = draw.below(16) - 8, zero = !extreme || row > 1 ? drawn : row ? highest : lowest;
        const int furthest = zero < 0 ? 7 - zero : zero + 8, largest = 127 / furthest;
        const int multiplier = extreme ? largest : 1 + draw.below(largest);
        grid.push_back(static_cast<uint8_t>(multiplier | (zero + 8) << 4));
        for (int64_t i = group * s.group; i < (group + 1) * s.group; ++i) {
          w[i] = static_cast<int8_t>((w[i] - zero) * multiplier);
        }
      }
      pack_halves(kernel.pack_int4_progressive, grid);
    } else {
      kernel.pack_int8(w.data(), s.k, s.n, s.k, middle, panels, packed.data());
      kernel.pack_int8(w.data(), s.k, s.n, s.k, 0, middle, packed.data());
    }
    linear.weight = {packed.data(), s.type, s.n, s.k, s.group};
    if (s.type != WeightType::int4) linear.weight_scale = {w_scale.data(), w_scale.size() > 1};
    linear.x = x.data();
    linear.rows = s.rows;
    linear.x_stride = stride;
    linear.x_scale = {x_scale.data(), x_scale.size() > 1};
    if (draw.below(2)) linear.bias = bias.data();
    linear.out = {draw.below(2) ? codes_out.data() : nullptr, out.data(), {reciprocal.data(), reciprocal.size() > 1},
                  out_stride};
    linear.add = draw.below(2);
  }

  float expected(int64_t m, int64_t n) const {
    const int8_t *a = x.data() + m * linear.x_stride, *b = w.data() + n * shape.k;
    const float token = x_scale[x_scale.size() > 1 ? m : 0];
    float y = 0.0f;
    if (shape.type == WeightType::int4) {
      for (int64_t g = 0; g < shape.k / shape.group; ++g) {
        int32_t sum = 0;
        for (int64_t k = g * shape.group; k < (g + 1) * shape.group; ++k) sum += a[k] * b[k];
        y = y + static_cast<float>(sum) * w_scale[n * (shape.k / shape.group) + g];
      }
      y = y * token;
    } else {
      int32_t sum = 0;
      for (int64_t k = 0; k < shape.k; ++k) sum += a[k] * b[k];
      y = static_cast<float>(sum) * (token * w_scale[w_scale.size() > 1 ? n : 0]);
    }
    return linear.bias ? y + bias[n] : y;
  }

  void check(const LinearTasks& tasks, ThreadPool& pool) {
    const std::vector<float> before = out;
    const std::vector<int8_t> codes_before = codes_out;
    pool.run(tasks.count, [&](int64_t task) { kernels().linear.run(linear, tasks, task); });
    for (int64_t m = 0; m < shape.rows; ++m) {
      for (int64_t n = 0; n < linear.out.stride; ++n) {
        const int64_t at = m * linear.out.stride + n;
        float wanted = before[at];
        int8_t wanted_code = codes_before[at];
        if (n < shape.n && linear.out.codes) {
          const float scaled = expected(m, n) * reciprocal[reciprocal.size() > 1 ? n : 0];
          wanted_code = static_cast<int8_t>(std::nearbyint(std::fmin(std::fmax(scaled, -127.0f), 127.0f)));
        } else if (n < shape.n) {
          wanted = linear.add ? before[at] + expected(m, n) : expected(m, n);
        }
        CHECK(out[at] == wanted && codes_out[at] == wanted_code,
              "rows %d n %d k %d type %d group %d, at [%d, %d]: %.9g instead of %.9g, %d instead of %d",
              static_cast<int>(shape.rows), static_cast<int>(shape.n), static_cast<int>(shape.k),
              static_cast<int>(shape.type), static_cast<int>(shape.group), static_cast<int>(m), static_cast<int>(n), static_cast<double>(out[at]),
              static_cast<double>(wanted), codes_out[at], wanted_code);
      }
    }
  }
};

TEST(linear) {
  Draw draw(1);
  ThreadPool one(1), two(2);
  const int64_t rows[] = {1, 2, 3, 4, 5, 7, 8, 13, 14, 15, 29, 33, 130, 300};
  const int64_t columns[] = {1, 15, 16, 17, 31, 32, 33, 47, 100};
  const int64_t depths[] = {2, 4, 6, 34, 48, 64, 130, 256, 1040};
  for (const int64_t m : rows) {
    for (const int64_t n : columns) {
      if (m > 33 && n > 17 && n < 100) continue;
      for (const int64_t k : depths) {
        if (m > 33 && k != 34 && k != 256) continue;
        const auto check = [&](WeightType type, int64_t group) {
          Product product(draw, {m, n, k, type, group}, draw.below(4) == 0);
          ThreadPool& pool = draw.below(2) ? two : one;
          product.check(kernels().linear.tasks(product.linear.weight, m, pool.size()), pool);
          const int64_t panels = (n + kernels().linear.panel - 1) / kernels().linear.panel;
          product.check({m * panels, 1, 1}, pool);  // the smallest tasks that there are
        };
        check(WeightType::int8, 0);
        const int64_t groups[] = {k, k / 2, k % 4 ? 2 : k / 4, k == 256 ? 128 : k % 16 ? 1 : 16};
        for (const int64_t group : groups) {
          check(WeightType::int4, group);
          if (group % 8 == 0) check(WeightType::int4_progressive, group);
        }
        if (k % 8 == 0) check(WeightType::int4_progressive, 8);
      }
    }
  }
}

// As deep as the largest models, where groups are expanded in several parts and sums pass 2^24.
TEST(linear_deep) {
  Draw draw(2);
  ThreadPool pool(1);
  for (const int64_t m : {1, 3, 40}) {
    const auto check = [&](WeightType type, int64_t group) {
      Product product(draw, {m, 35, 10240, type, group}, draw.below(2) == 0);
      product.check(kernels().linear.tasks(product.linear.weight, m, 1), pool);
    };
    check(WeightType::int8, 0);
    for (const int64_t group : {128, 64, 5120}) check(WeightType::int4, group);
    for (const int64_t group : {16, 32, 64, 128, 640, 5120}) check(WeightType::int4_progressive, group);
  }
  // More blocks of codes than a sweep has room for.
  Product product(draw, {2, 3, 66000, WeightType::int4_progressive, 8}, true);
  product.check(kernels().linear.tasks(product.linear.weight, 2, 1), pool);
}

TEST(embed) {
  Draw draw(3);
  for (const int64_t k : {1, 3, 4, 17, 512, 515, 1030}) {
    const int64_t n = 70;
    const std::vector<int8_t> codes = draw.codes(n * k);
    const std::vector<float> scale = draw.floats(n, 0.01f, 0.02f);
    const Aligned packed(kernels().linear.packed_bytes({nullptr, WeightType::int8, n, k, 0}));
    kernels().linear.pack_int8(codes.data(), k, n, k, 0, (n + kernels().linear.panel - 1) / kernels().linear.panel,
                               packed.data());
    const std::vector<int64_t> ids = {0, 69, 31, 32, 31};
    std::vector<float> rows(ids.size() * k), from_packed(ids.size() * k);
    for (const int64_t step : {0, 1}) {
      kernels().linear.embed(codes.data(), k, {scale.data(), step}, ids.data(), ids.size(), rows.data());
      kernels().linear.embed_packed({packed.data(), WeightType::int8, n, k, 0}, {scale.data(), step}, ids.data(), ids.size(),
                                    from_packed.data());
      for (size_t i = 0; i < ids.size(); ++i) {
        for (int64_t c = 0; c < k; ++c) {
          const float wanted = static_cast<float>(codes[ids[i] * k + c]) * scale[ids[i] * step];
          CHECK(rows[i * k + c] == wanted && from_packed[i * k + c] == wanted, "k %d", static_cast<int>(k));
        }
      }
    }
  }
}

}  // namespace
}  // namespace ssmquant
