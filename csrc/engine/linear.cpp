#include "engine/linear.hpp"

#include <utility>

namespace ssmquant {

namespace {

constexpr int64_t kPanelsPerTask = 16;

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
    if (consume) give_back(bytes + first * panel * row_bytes, bytes + (last * panel < n ? last * panel : n) * row_bytes);
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
  return made;
}

Pieces PackedLinear::pieces(int64_t rows, int threads) const {
  const LinearKernels& kernel = kernels().linear;
  const LinearTasks tasks = kernel.tasks(weight_, rows, threads);
  if (tasks.rows < rows) return {};  // a task reads what others read, too: there are rows enough to hide it
  LinearWeight part = weight_;
  part.n = tasks.panels * kernel.panel;
  return {packed_.data(), kernel.packed_bytes(part), tasks.count};
}

Linear PackedLinear::product(const int8_t* x, int64_t rows, int64_t x_stride, Output out, bool add) const {
  return {weight_, scale_.scale(), x, rows, x_stride, {&x_scale, 0}, bias.empty() ? nullptr : bias.data(), out, add};
}

Linear PackedLinear::to_codes(const int8_t* x, int64_t rows, int64_t x_stride, int8_t* out, int64_t out_stride) const {
  return product(x, rows, x_stride, {out, nullptr, reciprocal.scale(), out_stride}, false);
}

Linear PackedLinear::to_floats(const int8_t* x, int64_t rows, int64_t x_stride, float* out, int64_t out_stride) const {
  return product(x, rows, x_stride, {nullptr, out, {nullptr, 0}, out_stride}, false);
}

Linear PackedLinear::added_to(const int8_t* x, int64_t rows, int64_t x_stride, float* out, int64_t out_stride) const {
  return product(x, rows, x_stride, {nullptr, out, {nullptr, 0}, out_stride}, true);
}

void multiply(ThreadPool& pool, const Linear& linear, const PackedLinear& next) {
  const LinearKernels& kernel = kernels().linear;
  const LinearTasks tasks = kernel.tasks(linear.weight, linear.rows, pool.size());
  pool.expect(next.pieces(linear.rows, pool.size()));
  pool.run(tasks.count, [&](int64_t task) { kernel.run(linear, tasks, task); });
}

}  // namespace ssmquant
