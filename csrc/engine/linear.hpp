// `PackedLinear`: a linear layer ready to run: packed weight, and all that its results are multiplied by.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"
#include "runtime/buffer.hpp"
#include "runtime/thread_pool.hpp"

namespace ssmquant {

// One float for all channels, one a channel, or none.
struct Factors {
  std::vector<float> values;

  Scale scale() const { return {values.empty() ? nullptr : values.data(), values.size() > 1 ? int64_t{1} : int64_t{0}}; }
  Scale from(int64_t channel) const {
    const Scale all = scale();
    return {all.values ? all.values + channel * all.step : nullptr, all.step};
  }
};

class PackedLinear {
 public:
  // int8: codes [n, k], scale [1] or [n]. With `consume`, the pages of the codes are given back to the system as they are
  // packed: they are read from their file again if they are asked for again, or are zeros then if they are of no file.
  static PackedLinear int8(ThreadPool& pool, const int8_t* codes, int64_t n, int64_t k, std::vector<float> scale, bool consume);
  // int4: packed codes [n, k / 2], scale [n, groups].
  static PackedLinear int4(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k, const float* scale, int64_t groups,
                           bool consume);
  // int4_progressive: packed codes [n, k / 2], grid [n, groups], scale [1] or [n].
  static PackedLinear int4_progressive(ThreadPool& pool, const uint8_t* codes, int64_t n, int64_t k, const uint8_t* grid,
                                       int64_t groups, std::vector<float> scale, bool consume);

  float x_scale = 1.0f;        // of the codes that come in
  std::vector<float> bias;     // [n], or empty
  Factors reciprocal;          // of the codes that go out; none: floats go out

  int64_t inputs() const { return weight_.k; }
  int64_t outputs() const { return weight_.n; }
  int64_t bytes() const { return packed_.size(); }
  const LinearWeight& weight() const { return weight_; }
  const Factors& weight_scale() const { return scale_; }

  // The product of rows of codes, as codes, as floats, or added to floats. Behind x are linear_overread readable bytes.
  Linear to_codes(const int8_t* x, int64_t rows, int64_t x_stride, int8_t* out, int64_t out_stride) const;
  Linear to_floats(const int8_t* x, int64_t rows, int64_t x_stride, float* out, int64_t out_stride) const;
  Linear added_to(const int8_t* x, int64_t rows, int64_t x_stride, float* out, int64_t out_stride) const;

  // What the tasks of a product of so many rows read, if each reads a part of its own.
  Pieces pieces(int64_t rows, int threads) const;

 private:
  PackedLinear(WeightType type, int64_t n, int64_t k, int64_t group, std::vector<float> scale);

  Linear product(const int8_t* x, int64_t rows, int64_t x_stride, Output out, bool add) const;

  Buffer packed_;
  LinearWeight weight_;
  Factors scale_;
};

// Runs a product on the pool. Threads that have nothing left to do of it, or of what comes between the two, fetch the beginning
// of the weight that the `next` product of as many rows reads: of few rows, most of the time goes into reading.
void multiply(ThreadPool& pool, const Linear& linear, const PackedLinear& next);

}  // namespace ssmquant
