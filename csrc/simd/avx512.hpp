// F32 of sixteen floats (AVX-512 F, BW, DQ, VL). What each operation means is said in generic.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ssmquant::SSMQUANT_ISA {

struct F32 {
  static constexpr int width = 16;
  static constexpr int registers = 32;
  __m512 v;

  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static F32 of_codes(__m128i codes) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))}; }

  static F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static F32 zero() { return {_mm512_setzero_ps()}; }
  static F32 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static F32 load_i8(const int8_t* p) { return of_codes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F32 load_first_i8(const int8_t* p, int n) { return of_codes(_mm_maskz_loadu_epi8(first(n), p)); }
  static F32 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static F32 load_first_f16(const uint16_t* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
  }
  static F32 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  template <int at, int offset>
  static F32 byte_of(const uint8_t* p) {
    __m512i four = _mm512_loadu_si512(p);
    if (offset) four = _mm512_xor_si512(four, _mm512_set1_epi8(-128));
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(four, 24 - 8 * at), 24))};
  }
  template <int shift>
  static F32 nibble_of(const uint8_t* p) {  // a permutation looks at the lowest four bits alone
    const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(_mm512_loadu_si512(p), shift), values)};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_first(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  __m128i codes() const {
    const __m512 limited = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f));
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(limited));
  }
  void store_codes(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes()); }
  void store_first_codes(int8_t* p, int n) const { _mm_mask_storeu_epi8(p, first(n), codes()); }
  __m256i halves() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store_f16(uint16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves()); }
  void store_first_f16(uint16_t* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), halves()); }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float max() const { return _mm512_reduce_max_ps(v); }

  friend F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
};

inline void hold(F32& a) { __asm__("" : "+v"(a.v)); }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
inline F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32 reciprocal(F32 a) {  // a step of Newton's method doubles the estimate's 14 bits
  const __m512 estimate = _mm512_rcp14_ps(a.v);
  const __m512 missed = _mm512_fnmadd_ps(a.v, estimate, _mm512_set1_ps(1.0f));
  return {_mm512_fmadd_ps(estimate, missed, estimate)};
}
inline F32 round_f16(F32 a) { return {_mm512_cvtph_ps(a.halves())}; }
inline F32 fraction(F32 x) { return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
inline F32 scale2(F32 a, F32 x) { return {_mm512_scalef_ps(a.v, x.v)}; }

inline void transpose(F32 (&m)[F32::width]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(m[i].v, m[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(m[i].v, m[i + 1].v);
  }
  // Row i + c of four rows: columns c of the four 128-bit parts.
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      m[i + 2 * half].v = _mm512_shuffle_ps(t[i + half], t[i + 2 + half], 0x44);
      m[i + 2 * half + 1].v = _mm512_shuffle_ps(t[i + half], t[i + 2 + half], 0xee);
    }
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 low = _mm512_shuffle_f32x4(m[c].v, m[c + 4].v, 0x88);
    const __m512 high = _mm512_shuffle_f32x4(m[c + 8].v, m[c + 12].v, 0x88);
    const __m512 low_odd = _mm512_shuffle_f32x4(m[c].v, m[c + 4].v, 0xdd);
    const __m512 high_odd = _mm512_shuffle_f32x4(m[c + 8].v, m[c + 12].v, 0xdd);
    m[c].v = _mm512_shuffle_f32x4(low, high, 0x88);
    m[c + 8].v = _mm512_shuffle_f32x4(low, high, 0xdd);
    m[c + 4].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    m[c + 12].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
}

inline F32 sum_each(const F32 (&m)[F32::width]) {
  __m512 halves[8], quarters[4], eighths[2];  // of 2, 4, 8 rows side by side
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = m[i + i / 4 * 4].v, b = m[i + i / 4 * 4 + 4].v;
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {
    const __m512 a = halves[i], b = halves[i + 4];
    quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
#pragma GCC unroll 8
  for (int i = 0; i < 2; ++i) {
    const __m512 a = quarters[2 * i], b = quarters[2 * i + 1];
    eighths[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(eighths[0], eighths[1], 0x88), _mm512_shuffle_ps(eighths[0], eighths[1], 0xdd))};
}

}  // namespace ssmquant::SSMQUANT_ISA
