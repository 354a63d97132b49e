// `PackedLinear`: a linear layer ready to run: packed weight, and all that its results are multiplied by.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/rows.hpp"
#include "kernels/kernels.hpp"
#include "runtime/buffer.hpp"
#include "runtime/thread_pool.hpp"

namespace ssmquant {

// A product over some rows: of codes, exact in integers, or of floats.
class Product {
 public:
  explicit Product(const Linear& linear) : of_codes_(true), linear_(linear), floats_{} {}
  explicit Product(const FloatLinear& linear) : of_codes_(false), linear_{}, floats_(linear) {}

  int64_t rows() const { return of_codes_ ? linear_.rows : floats_.rows; }
  LinearTasks tasks(int threads) const;
  void run(const LinearTasks& tasks, int64_t task) const;

 private:
  bool of_codes_;
  Linear linear_;
  FloatLinear floats_;
};

class PackedLinear {
 public:
  // int8: codes [n, k], scale [1] or [n]. With `consume`, the pages of all that is packed (codes, and what there is for each
  // group) are given back to the system as they are packed: they are read from their file again if they are asked for again, or
  // are zeros then if they are of no file.
  static PackedLinear int8(ThreadPool& pool, const int8_t* codes, int64_t n, int64_t k, std::vector<float> scale, bool consume);
  // int4: packed codes [n, k / 2], scale [n, groups].
  static PackedLinear int4(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k, const float* scale, int64_t groups,
                           bool consume);
  // int4_progressive: packed codes [n, k / 2], grid [n, groups], scale [1] or [n].
  static PackedLinear int4_progressive(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k, const uint8_t* grid,
                                       int64_t groups, std::vector<float> scale, bool consume);
  // int4_asymmetric: packed codes [n, k / 2], scale and zero_point [n, groups].
  static PackedLinear int4_asymmetric(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k, const float* scale,
                                      const int8_t* zero_point, int64_t groups, bool consume);
  // Numbers [n, k]: float16, as bits, or float32 ones that are kept in a type that has all of them.
  static PackedLinear halves(ThreadPool& pool, const uint16_t* values, int64_t n, int64_t k, bool consume);
  static PackedLinear singles(ThreadPool& pool, const float* values, WeightType type, int64_t n, int64_t k, bool consume);

  Factors x_scale;          // of the codes that come in, one for all; none: floats come in
  std::vector<float> bias;  // [n], or empty
  Sites sites;              // that its results are

  int64_t inputs() const { return weight_.k; }
  int64_t outputs() const { return weight_.n; }
  int64_t bytes() const { return packed_.size(); }
  bool takes_codes() const { return !x_scale.values.empty(); }
  const LinearWeight& weight() const { return weight_; }
  const Factors& weight_scale() const { return scale_; }

  // The product of rows, as its sites have it, as floats, or added to floats. Behind x are linear_overread readable bytes.
  Product to_sites(const Rows& x, int64_t rows, const Rows& out) const { return product(x, rows, out.output(sites.reciprocal.scale()), false); }
  Product to_floats(const Rows& x, int64_t rows, float* out, int64_t out_stride) const {
    return product(x, rows, {nullptr, out, {nullptr, 0}, out_stride}, false);
  }
  Product added_to(const Rows& x, int64_t rows, float* out, int64_t out_stride) const {
    return product(x, rows, {nullptr, out, {nullptr, 0}, out_stride}, true);
  }

  // What the tasks of a product of so many rows read, if each reads a part of its own.
  Pieces pieces(int64_t rows, int threads) const;

 private:
  PackedLinear(WeightType type, int64_t n, int64_t k, int64_t group, std::vector<float> scale);

  Product product(const Rows& x, int64_t rows, Output out, bool add) const;

  Buffer packed_;
  LinearWeight weight_;
  Factors scale_;
};

// Runs a product on the pool. Threads that have nothing left to do of it, or of what comes between the two, fetch the beginning
// of the weight that the `next` product of as many rows reads: of few rows, most of the time goes into reading.
void multiply(ThreadPool& pool, const Product& product, const PackedLinear& next);

}  // namespace ssmquant
