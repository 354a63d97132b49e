// `Rows`, what stages hand to one another, and `Sites`, what a stage makes of its results.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"
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

// Rows as kernels read them: codes under a scale, or floats.
inline Input input_of(const uint8_t* data, bool codes, Scale scale, int64_t stride) {
  if (codes) return {reinterpret_cast<const int8_t*>(data), nullptr, scale, stride};
  return {nullptr, reinterpret_cast<const float*>(data), {nullptr, 0}, stride};
}

// Bytes of so many channels.
inline int64_t channel_bytes(bool codes, int64_t channels) { return codes ? channels : channels * int64_t{sizeof(float)}; }

// Rows of channels: int8 codes, or float32 numbers; `stride` channels lie between the beginnings of two rows.
struct Rows {
  uint8_t* data;
  bool codes;
  int64_t stride;

  int64_t bytes(int64_t channels) const { return channel_bytes(codes, channels); }
  // Those from some row and channel on.
  Rows from(int64_t row, int64_t channel = 0) const { return {data + bytes(row * stride + channel), codes, stride}; }
  float* floats() const { return reinterpret_cast<float*>(data); }

  // As kernels take them; a scale, or the reciprocals of one, are of codes.
  Input input(const Factors& scale) const { return input_of(data, codes, scale.scale(), stride); }
  Output output(Scale reciprocal) const {
    if (codes) return {reinterpret_cast<int8_t*>(data), nullptr, reciprocal, stride};
    return {nullptr, floats(), {nullptr, 0}, stride};
  }
};

// The activation sites that a stage writes side by side. Its rows are codes where all of them are int8 sites and all that reads
// them takes codes; else floats, in which an int8 site's are values of codes.
struct Sites {
  struct Rounded {
    int64_t first, channels;
    Factors scale, reciprocal;
  };

  Factors reciprocal;            // of codes; none: floats
  std::vector<Rounded> rounded;  // of floats

  bool codes() const { return !reciprocal.values.empty(); }

  // Makes values of codes of channels [first, last) of rows of floats, where an int8 site is there.
  void round(const Rows& rows, int64_t count, int64_t first, int64_t last) const;
  // The same of all channels, on the pool.
  void round(ThreadPool& pool, const Rows& rows, int64_t count) const;
};

}  // namespace ssmquant
