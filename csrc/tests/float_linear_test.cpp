// The float linear kernels against sums in double precision, and against themselves: a row's results are the same bits whatever
// is beside it and however the product is cut.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "kernels/kernels.hpp"
#include "runtime/buffer.hpp"
#include "runtime/thread_pool.hpp"
#include "tests/test.hpp"

namespace ssmquant {
namespace {

using tests::Draw;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr WeightType kTypes[] = {WeightType::int8,     WeightType::int4,    WeightType::int4_progressive, WeightType::int4_asymmetric,
                                 WeightType::bfloat16, WeightType::float16, WeightType::float32};

bool grouped(WeightType type) {
  return type == WeightType::int4 || type == WeightType::int4_progressive || type == WeightType::int4_asymmetric;
}

// A weight, packed, and the numbers that it stands for (without the scale of a row).
struct Weight {
  LinearWeight packed;
  std::vector<float> values, scale;
  Buffer memory;

  Weight(Draw& draw, WeightType type, int64_t n, int64_t k, int64_t group)
      : packed{nullptr, type, n, k, grouped(type) ? group : 0}, memory(kernels().linear.packed_bytes(packed)) {
    const LinearKernels& kernel = kernels().linear;
    const int64_t panels = (n + kernel.panel - 1) / kernel.panel, groups = grouped(type) ? k / group : 1;
    uint8_t* const to = memory.data();
    packed.packed = to;
    values.resize(static_cast<size_t>(n * k));
    scale = draw.floats(draw.below(2) ? n : 1, 0.5f, 2.0f);
    if (type == WeightType::int8) {
      const std::vector<int8_t> codes = draw.codes(n * k);
      values.assign(codes.begin(), codes.end());
      kernel.pack_int8(codes.data(), k, n, k, 0, panels, to);
    } else if (grouped(type)) {
      std::vector<uint8_t> nibbles(static_cast<size_t>(n * k / 2)), grid;
      for (uint8_t& byte : nibbles) byte = static_cast<uint8_t>(draw.below(256));
      const std::vector<float> factors = draw.floats(n * groups, 0.01f, 0.02f);
      std::vector<int8_t> zeros;
      for (int64_t g = 0; g < n * groups; ++g) {
        zeros.push_back(static_cast<int8_t>(draw.below(16) - 8));
        grid.push_back(static_cast<uint8_t>((1 + draw.below(8)) | (zeros.back() + 8) << 4));
      }
      for (int64_t i = 0; i < n * k; ++i) {
        const int code = ((nibbles[i / 2] >> i % 2 * 4 & 15) ^ 8) - 8;
        const int64_t g = i / k * groups + i % k / group;
        const int zero = type == WeightType::int4 ? 0 : zeros[g];
        const float factor = type == WeightType::int4_progressive ? static_cast<float>(grid[g] & 15) : factors[g];
        values[i] = static_cast<float>(code - zero) * factor;
      }
      if (type == WeightType::int4) {
        kernel.pack_int4(nibbles.data(), factors.data(), n, k, group, 0, panels, to);
      } else if (type == WeightType::int4_progressive) {
        kernel.pack_int4_progressive(nibbles.data(), grid.data(), n, k, group, 0, panels, to);
      } else {
        kernel.pack_int4_asymmetric(nibbles.data(), factors.data(), zeros.data(), n, k, group, 0, panels, to);
      }
    } else {
      // Numbers that every type has.
      for (float& value : values) value = static_cast<float>(draw.below(255) - 127) * 0x1p-9f;
      values[0] = 0x1p-20f;  // a subnormal number of float16
      const int64_t middle = panels / 2;
      kernel.pack_singles(values.data(), type, n, k, middle, panels, to);
      kernel.pack_singles(values.data(), type, n, k, 0, middle, to);
    }
  }

  double row_scale(int64_t column) const {
    if (packed.type != WeightType::int8 && packed.type != WeightType::int4_progressive) return 1.0;
    return scale[scale.size() > 1 ? column : 0];
  }
};

void check(Draw& draw, WeightType type, int64_t rows, int64_t n, int64_t k, int64_t group, ThreadPool& pool) {
  const Weight weight(draw, type, n, k, group);
  const int64_t x_stride = k + draw.below(5), out_stride = n + draw.below(5), panel = kernels().linear.panel;
  std::vector<float> x(static_cast<size_t>(rows * x_stride), kNan);  // what is beside the rows is not read
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < k; ++i) x[r * x_stride + i] = draw.uniform(-1.0f, 1.0f);
  }
  const std::vector<float> bias = draw.floats(n, -1.0f, 1.0f), before = draw.floats(rows * out_stride, -1.0f, 1.0f);
  const std::vector<float> reciprocal = draw.floats(n, 10.0f, 20.0f);
  std::vector<float> out = before;
  std::vector<int8_t> codes(out.size(), 113);
  FloatLinear linear = {};
  linear.weight = weight.packed;
  linear.weight_scale = {weight.scale.data(), weight.scale.size() > 1};
  linear.x = x.data();
  linear.rows = rows;
  linear.x_stride = x_stride;
  linear.bias = draw.below(2) ? bias.data() : nullptr;
  linear.out = {nullptr, out.data(), {nullptr, 0}, out_stride};
  linear.add = draw.below(2);
  const auto run = [&](const LinearTasks& tasks) {
    pool.run(tasks.count, [&](int64_t task) { kernels().float_linear.run(linear, tasks, task); });
  };
  run(kernels().float_linear.tasks(linear.weight, rows, pool.size()));
  const char* const what = "type %d rows %d n %d k %d group %d, at [%d, %d]: %.9g instead of %.9g";
  double missed = 0.0, size = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < out_stride; ++c) {
      const int64_t at = r * out_stride + c;
      if (c >= n) {
        CHECK(out[at] == before[at], "written beside the row");
        continue;
      }
      double sum = 0.0, squares = 0.0;  // the squares: what a sum's would be without luck in its signs
      const auto add = [&](double term) {
        sum += term;
        squares += term * term;
      };
      const double scale = weight.row_scale(c);
      for (int64_t i = 0; i < k; ++i) {
        add(static_cast<double>(x[r * x_stride + i]) * static_cast<double>(weight.values[c * k + i]) * scale);
      }
      if (linear.bias) add(bias[c]);
      if (linear.add) add(before[at]);
      missed += (out[at] - sum) * (out[at] - sum);
      size += squares;
    }
  }
  const double limit = 4.0 * 0x1p-23 * std::sqrt(static_cast<double>(k));
  CHECK(std::sqrt(missed) <= limit * std::sqrt(size), what, static_cast<int>(type), static_cast<int>(rows), static_cast<int>(n),
        static_cast<int>(k), static_cast<int>(group), -1, -1, std::sqrt(missed), limit * std::sqrt(size));
  // Row by row, in the smallest tasks: the same bits.
  const std::vector<float> together = out;
  out = before;
  for (int64_t r = 0; r < rows; ++r) {
    FloatLinear one = linear;
    one.x += r * x_stride;
    one.rows = 1;
    one.out.floats += r * out_stride;
    for (int64_t p = 0; p * panel < n; ++p) kernels().float_linear.run(one, {(n + panel - 1) / panel, 1, 1}, p);
  }
  CHECK(std::memcmp(out.data(), together.data(), out.size() * sizeof(float)) == 0, what, static_cast<int>(type),
        static_cast<int>(rows), static_cast<int>(n), static_cast<int>(k), static_cast<int>(group), 0, 0, 0.0, 0.0);
  // Codes are those of the floats.
  linear.add = false;
  run({rows * ((n + panel - 1) / panel), 1, 1});
  linear.out.codes = codes.data();
  linear.out.reciprocal = {reciprocal.data(), 1};
  run(kernels().float_linear.tasks(linear.weight, rows, pool.size()));
  for (int64_t at = 0; at < rows * out_stride; ++at) {
    const int64_t c = at % out_stride;
    const float scaled = std::fmin(std::fmax(out[at] * reciprocal[c < n ? c : 0], -127.0f), 127.0f);
    CHECK(codes[at] == (c < n ? static_cast<int8_t>(std::nearbyint(scaled)) : 113), "codes at %d", static_cast<int>(at));
  }
}

TEST(float_linear) {
  Draw draw(11);
  ThreadPool one(1), two(2);
  for (const WeightType type : kTypes) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 33, 200}) {
      for (const int64_t n : {1, 17, 64, 65, 100}) {
        if (rows > 33 && n != 65) continue;
        for (const int64_t k : {2, 6, 34, 48, 256, 1040}) {
          if (rows > 7 && k != 34 && k != 1040) continue;
          const int64_t groups[] = {k, k % 16 ? 2 : 16, k == 1040 ? 208 : k / 2};
          for (const int64_t group : groups) {
            if (type == WeightType::int4_progressive && group % 8) continue;
            check(draw, type, rows, n, k, group, draw.below(2) ? two : one);
            if (!grouped(type)) break;
          }
        }
      }
    }
  }
}

TEST(float_embed) {
  Draw draw(12);
  for (const WeightType type : kTypes) {
    if (type == WeightType::int4_progressive || type == WeightType::int4_asymmetric) continue;
    for (const int64_t k : {2, 34, 512, 1030}) {
      const int64_t n = 70, group = k % 10 ? k : k / 10;
      const Weight weight(draw, type, n, k, group % 2 ? k : group);
      const std::vector<int64_t> ids = {0, 69, 31, 32, 31};
      std::vector<float> rows(ids.size() * static_cast<size_t>(k));
      const Scale scale = {weight.scale.data(), weight.scale.size() > 1};
      kernels().linear.embed_packed(weight.packed, scale, ids.data(), static_cast<int64_t>(ids.size()), rows.data());
      for (size_t i = 0; i < ids.size(); ++i) {
        for (int64_t c = 0; c < k; ++c) {
          const float factor = type == WeightType::int8 ? scale.values[ids[i] * scale.step] : 1.0f;
          CHECK(rows[i * k + c] == weight.values[ids[i] * k + c] * factor, "type %d k %d", static_cast<int>(type), static_cast<int>(k));
        }
      }
    }
  }
}

// Every number of float16 and of bfloat16 comes through unchanged.
TEST(float_linear_halves) {
  const int64_t k = 65536 / 64, n = 64;
  std::vector<uint16_t> halves(static_cast<size_t>(n * k));
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  const LinearWeight shape{nullptr, WeightType::float16, n, k, 0};
  const int64_t panels = (n + kernels().linear.panel - 1) / kernels().linear.panel;
  Buffer from_halves(kernels().linear.packed_bytes(shape)), again(kernels().linear.packed_bytes(shape));
  kernels().linear.pack_halves(halves.data(), n, k, 0, panels, from_halves.data());
  std::vector<float> values(halves.size());
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(i);
  LinearWeight weight = shape;
  weight.packed = from_halves.data();
  kernels().linear.embed_packed(weight, {nullptr, 0}, ids.data(), n, values.data());
  for (float& value : values) value = std::isnan(value) ? 0.0f : value;
  kernels().linear.pack_singles(values.data(), WeightType::float16, n, k, 0, panels, again.data());
  std::vector<float> once_more(values.size());
  weight.packed = again.data();
  kernels().linear.embed_packed(weight, {nullptr, 0}, ids.data(), n, once_more.data());
  CHECK(std::memcmp(values.data(), once_more.data(), values.size() * sizeof(float)) == 0, "float16");
  weight.type = WeightType::bfloat16;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = static_cast<uint32_t>(i) << 16;
    std::memcpy(&values[i], &bits, sizeof(bits));
  }
  kernels().linear.pack_singles(values.data(), WeightType::bfloat16, n, k, 0, panels, again.data());
  kernels().linear.embed_packed(weight, {nullptr, 0}, ids.data(), n, once_more.data());
  CHECK(std::memcmp(values.data(), once_more.data(), values.size() * sizeof(float)) == 0, "bfloat16");
}

}  // namespace
}  // namespace ssmquant
