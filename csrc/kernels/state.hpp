// Reads, rounds and writes recurrent states, a vector at a time. An int8 state's values here are in units of its scale.
#pragma once

#include "kernels/operands.hpp"
#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {

template <class Lanes>
inline F32 read_state(StateType type, const void* state, int64_t at, Lanes lanes) {
  switch (type) {
    case StateType::float16:
      return load(static_cast<const F16*>(state) + at, lanes);
    case StateType::int8:
      return load(static_cast<const int8_t*>(state) + at, lanes);
    default:
      return load(static_cast<const float*>(state) + at, lanes);
  }
}

template <class Lanes>
inline void write_state(StateType type, F32 x, void* state, int64_t at, Lanes lanes) {
  switch (type) {
    case StateType::float16:
      return store(x, static_cast<F16*>(state) + at, lanes);
    case StateType::int8:
      return store_codes(x, static_cast<int8_t*>(state) + at, lanes);
    default:
      return store(x, static_cast<float*>(state) + at, lanes);
  }
}

}  // namespace ssmquant::SSMQUANT_ISA
