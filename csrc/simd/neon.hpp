// F32 for neon (to be written)
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

struct F32 {
  static constexpr int width = 1;
  float v;

  static F32 load(const float* p) { return {*p}; }
  static F32 broadcast(float x) { return {x}; }
  static F32 zero() { return {0.0f}; }
  // The first n < width lanes; the others are zero.
  static F32 load_first(const float*, int) { return zero(); }
  static F32 load_i8(const int8_t* p) { return {static_cast<float>(*p)}; }
  static F32 load_first_i8(const int8_t*, int) { return zero(); }
  void store(float* p) const { *p = v; }
  void store_first(float*, int) const {}
  // Rounded half to even and clamped to [-127, 127] (numerics.round_clamp).
  void store_codes(int8_t* p) const {
    const float limited = v < -127.0f ? -127.0f : v > 127.0f ? 127.0f : v;
    *p = static_cast<int8_t>(std::nearbyintf(limited));
  }
  void store_first_codes(int8_t*, int) const {}
  float sum() const { return v; }
  float max() const { return v; }

  friend F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
  friend F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
  friend F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
  friend F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
};

inline F32 fma(F32 a, F32 b, F32 c) { return {std::fma(a.v, b.v, c.v)}; }
inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 abs(F32 a) { return {std::fabs(a.v)}; }
inline F32 round(F32 a) { return {std::nearbyintf(a.v)}; }

}  // namespace ssmquant::SSMQUANT_ISA
