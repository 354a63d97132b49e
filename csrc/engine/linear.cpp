#include "engine/linear.hpp"

#include <utility>

namespace ssmquant {

namespace {

constexpr int64_t kPanelsPerTask = 16;

// Gives the pages of an array that has been packed back.
template <class T>
void give_back(const T* values, int64_t count, bool consume) {
  const uint8_t* const first = reinterpret_cast<const uint8_t*>(values);
  if (consume) ssmquant::give_back(first, first + count * static_cast<int64_t>(sizeof(T)));
}

// Packs all panels on the pool; pack(first, last) packs some. `codes` are rows of `row_bytes`.
template <class Pack>
void pack_panels(ThreadPool& pool, const void* codes, int64_t n, int64_t row_bytes, bool consume, const Pack& pack) {
  const int64_t panel = kernels().linear.panel;
  const int64_t panels = (n + panel - 1) / panel;
  const uint8_t* const bytes = static_cast<const uint8_t*>(codes);
  pool.run((panels + kPanelsPerTask - 1) / kPanelsPerTask, [&](int64_t task) {
    const int64_t first = task * kPanelsPerTask;
    const int64_t last = first + kPanelsPerTask < panels ? first + kPanelsPerTask : panels;
    pack(first, last);
    give_back(bytes + first * panel * row_bytes, ((last * panel < n ? last * panel : n) - first * panel) * row_bytes, consume);
  });
}

}  // namespace

PackedLinear::PackedLinear(WeightType type, int64_t n, int64_t k, int64_t group, std::vector<float> scale)
    : weight_{nullptr, type, n, k, group}, scale_{std::move(scale)} {
  packed_ = Buffer::beside_others(kernels().linear.packed_bytes(weight_));
  weight_.packed = packed_.data();
}

PackedLinear PackedLinear::int8(ThreadPool& pool, const int8_t* codes, int64_t n, int64_t k, std::vector<float> scale,
                                bool consume) {
  PackedLinear made(WeightType::int8, n, k, 0, std::move(scale));
  uint8_t* packed = made.packed_.data();
  pack_panels(pool, codes, n, k, consume, [&](int64_t first, int64_t last) {
    kernels().linear.pack_int8(codes, k, n, k, first, last, packed);
  });
  return made;
}

PackedLinear PackedLinear::int4(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k, const float* scale,
                                int64_t groups, bool consume) {
  const int64_t group = k / groups;
  PackedLinear made(WeightType::int4, n, k, group, {});
  uint8_t* packed = made.packed_.data();
  pack_panels(pool, codes, n, k / 2, consume, [&](int64_t first, int64_t last) {
    kernels().linear.pack_int4(codes, scale, n, k, group, first, last, packed);
  });
  give_back(scale, n * groups, consume);
  return made;
}

PackedLinear PackedLinear::int4_progressive(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k,
                                            const uint8_t* grid, int64_t groups, std::vector<float> scale, bool consume) {
  const int64_t group = k / groups;
  PackedLinear made(WeightType::int4_progressive, n, k, group, std::move(scale));
  uint8_t* packed = made.packed_.data();
  pack_panels(pool, codes, n, k / 2, consume, [&](int64_t first, int64_t last) {
    kernels().linear.pack_int4_progressive(codes, grid, n, k, group, first, last, packed);
  });
  give_back(grid, n * groups, consume);
  return made;
}

PackedLinear PackedLinear::int4_asymmetric(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k, const float* scale,
                                           const int8_t* zero_point, int64_t groups, bool consume) {
  const int64_t group = k / groups;
  PackedLinear made(WeightType::int4_asymmetric, n, k, group, {});
  uint8_t* packed = made.packed_.data();
  pack_panels(pool, codes, n, k / 2, consume, [&](int64_t first, int64_t last) {
    kernels().linear.pack_int4_asymmetric(codes, scale, zero_point, n, k, group, first, last, packed);
  });
  give_back(scale, n * groups, consume);
  give_back(zero_point, n * groups, consume);
  return made;
}

PackedLinear PackedLinear::halves(ThreadPool& pool, const uint16_t* values, int64_t n, int64_t k, bool consume) {
  PackedLinear made(WeightType::float16, n, k, 0, {});
  uint8_t* packed = made.packed_.data();
  pack_panels(pool, values, n, 2 * k, consume, [&](int64_t first, int64_t last) {
    kernels().linear.pack_halves(values, n, k, first, last, packed);
  });
  return made;
}

PackedLinear PackedLinear::singles(ThreadPool& pool, const float* values, WeightType type, int64_t n, int64_t k, bool consume) {
  PackedLinear made(type, n, k, 0, {});
  uint8_t* packed = made.packed_.data();
  pack_panels(pool, values, n, 4 * k, consume, [&](int64_t first, int64_t last) {
    kernels().linear.pack_singles(values, type, n, k, first, last, packed);
  });
  return made;
}

Pieces PackedLinear::pieces(int64_t rows, int threads) const {
  const LinearTasks tasks = takes_codes() ? kernels().linear.tasks(weight_, rows, threads)
                                          : kernels().float_linear.tasks(weight_, rows, threads);
  if (tasks.rows < rows) return {};  // a task reads what others read, too: there are rows enough to hide it
  LinearWeight part = weight_;
  part.n = tasks.panels * kernels().linear.panel;
  return {packed_.data(), kernels().linear.packed_bytes(part), tasks.count};
}

Product PackedLinear::product(const Rows& x, int64_t rows, Output out, bool add) const {
  const float* const biases = bias.empty() ? nullptr : bias.data();
  if (!takes_codes()) return Product(FloatLinear{weight_, scale_.scale(), x.floats(), rows, x.stride, biases, out, add});
  const Input codes = x.input(x_scale);
  return Product(Linear{weight_, scale_.scale(), codes.codes, rows, x.stride, codes.scale, biases, out, add});
}

LinearTasks Product::tasks(int threads) const {
  return of_codes_ ? kernels().linear.tasks(linear_.weight, linear_.rows, threads)
                   : kernels().float_linear.tasks(floats_.weight, floats_.rows, threads);
}

void Product::run(const LinearTasks& tasks, int64_t task) const {
  of_codes_ ? kernels().linear.run(linear_, tasks, task) : kernels().float_linear.run(floats_, tasks, task);
}

void multiply(ThreadPool& pool, const Product& product, const PackedLinear& next) {
  const LinearTasks tasks = product.tasks(pool.size());
  pool.expect(next.pieces(product.rows(), pool.size()));
  pool.run(tasks.count, [&](int64_t task) { product.run(tasks, task); });
}

}  // namespace ssmquant
