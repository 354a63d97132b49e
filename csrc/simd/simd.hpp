// `F32`, a vector of floats of the instruction set that the file is compiled for, and what all kernels do with it.
//
// Everything is in namespace ssmquant::<isa>, because each kernel source is compiled once for each instruction set. For the
// same reason kernel sources include no standard templates (std::vector, std::function): the linker would keep one copy
// of their instances, perhaps one with instructions that this processor lacks.
#pragma once

#include <cstdint>

#ifndef SSMQUANT_ISA
#error "kernel sources are compiled with -DSSMQUANT_ISA=<name>"
#endif

#if defined(__AVX512F__)
#include "simd/avx512.hpp"
#elif defined(__AVX2__)
#include "simd/avx2.hpp"
#elif defined(__ARM_NEON)
#include "simd/neon.hpp"
#else
#include "simd/generic.hpp"
#endif

namespace ssmquant::SSMQUANT_ISA {

// Which lanes of a vector a row has at some place: all of them, or the first n at its end.
struct All {};
struct First {
  int n;
};

// Calls body(place, lanes) for every vector of a row of `count` elements; a generic lambda is compiled for both kinds of
// lanes.
template <class Body>
inline void each_vector(int64_t count, const Body& body) {
  int64_t at = 0;
  for (; at + F32::width <= count; at += F32::width) body(at, All{});
  if (at < count) body(at, First{static_cast<int>(count - at)});
}

inline F32 load(const float* p, All) { return F32::load(p); }
inline F32 load(const float* p, First lanes) { return F32::load_first(p, lanes.n); }
inline F32 load(const int8_t* p, All) { return F32::load_i8(p); }
inline F32 load(const int8_t* p, First lanes) { return F32::load_first_i8(p, lanes.n); }
inline void store(F32 x, float* p, All) { x.store(p); }
inline void store(F32 x, float* p, First lanes) { x.store_first(p, lanes.n); }
inline void store_codes(F32 x, int8_t* p, All) { x.store_codes(p); }
inline void store_codes(F32 x, int8_t* p, First lanes) { x.store_first_codes(p, lanes.n); }

// Half-precision numbers in memory, as bits.
struct F16 {
  uint16_t bits;
};
inline F32 load(const F16* p, All) { return F32::load_f16(&p->bits); }
inline F32 load(const F16* p, First lanes) { return F32::load_first_f16(&p->bits, lanes.n); }
inline void store(F32 x, F16* p, All) { x.store_f16(&p->bits); }
inline void store(F32 x, F16* p, First lanes) { x.store_first_f16(&p->bits, lanes.n); }

// a * b + c in the processor's fastest way, rounded once or twice: for long sums, and the same for all sums of a build.
inline F32 add_product(F32 a, F32 b, F32 c) { return F32::width > 1 ? fma(a, b, c) : a * b + c; }

// The value of a code: rounded half to even and clamped to [-127, 127] (numerics.round_clamp).
inline F32 round_clamp(F32 x) { return round(min(max(x, F32::broadcast(-127.0f)), F32::broadcast(127.0f))); }

}  // namespace ssmquant::SSMQUANT_ISA
