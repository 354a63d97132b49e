// F32 of sixteen floats (AVX-512 F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ssmquant::SSMQUANT_ISA {

struct F32 {
  static constexpr int width = 16;
  __m512 v;

  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

  static F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static F32 zero() { return {_mm512_setzero_ps()}; }
  static F32 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static F32 load_i8(const int8_t* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
  }
  static F32 load_first_i8(const int8_t* p, int n) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_first(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  __m128i codes() const {
    const __m512 limited = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f));
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(limited));
  }
  void store_codes(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes()); }
  void store_first_codes(int8_t* p, int n) const { _mm_mask_storeu_epi8(p, first(n), codes()); }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float max() const { return _mm512_reduce_max_ps(v); }

  friend F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
};

inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
inline F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

}  // namespace ssmquant::SSMQUANT_ISA
