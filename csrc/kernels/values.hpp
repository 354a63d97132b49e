// Reads inputs and writes outputs of kernels, a vector at a time.
#pragma once

#include "kernels/operands.hpp"
#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {

template <class Lanes>
inline F32 at(const Scale& scale, int64_t c, Lanes lanes) {
  return scale.step ? load(scale.values + c, lanes) : F32::broadcast(scale.values[0]);
}

// Channels from c on of row r, dequantised.
template <class Lanes>
inline F32 value(const Input& input, int64_t r, int64_t c, Lanes lanes) {
  if (!input.codes) return load(input.floats + r * input.stride + c, lanes);
  return load(input.codes + r * input.stride + c, lanes) * at(input.scale, c, lanes);
}

// Writes channels from c on of row r, quantised if codes are wanted.
template <class Lanes>
inline void emit(F32 y, const Output& out, int64_t r, int64_t c, Lanes lanes) {
  if (out.codes) {
    store_codes(y * at(out.reciprocal, c, lanes), out.codes + r * out.stride + c, lanes);
  } else {
    store(y, out.floats + r * out.stride + c, lanes);
  }
}

// Writes a row.
inline void emit(const float* y, int64_t channels, const Output& out, int64_t r) {
  each_vector(channels, [&](int64_t c, auto lanes) { emit(load(y + c, lanes), out, r, c, lanes); });
}

}  // namespace ssmquant::SSMQUANT_ISA
