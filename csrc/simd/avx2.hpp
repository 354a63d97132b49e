// F32 of eight floats (AVX2, FMA, F16C). What each operation means is said in generic.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

struct F32 {
  static constexpr int width = 8;
  static constexpr int registers = 16;
  __m256 v;

  // Lanes below n have their sign bit set.
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F32 of_codes(__m128i codes) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))}; }

  static F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static F32 broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static F32 zero() { return {_mm256_setzero_ps()}; }
  static F32 load_first(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  static F32 load_i8(const int8_t* p) { return of_codes(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  static F32 load_first_i8(const int8_t* p, int n) {
    int8_t lanes[width] = {};
    memcpy(lanes, p, static_cast<size_t>(n));
    return load_i8(lanes);
  }
  static F32 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static F32 load_first_f16(const uint16_t* p, int n) {
    uint16_t lanes[width] = {};
    memcpy(lanes, p, sizeof(uint16_t) * static_cast<size_t>(n));
    return load_f16(lanes);
  }
  static F32 load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  template <int at, int offset>
  static F32 byte_of(const uint8_t* p) {
    __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if (offset) four = _mm256_xor_si256(four, _mm256_set1_epi8(-128));
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(four, 24 - 8 * at), 24))};
  }
  template <int shift>
  static F32 nibble_of(const uint8_t* p) {
    const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(four, shift), _mm256_set1_epi32(15)))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store_first(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }
  void store_codes(int8_t* p) const {
    const __m256 limited = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(127.0f));
    const __m256i wide = _mm256_cvtps_epi32(limited);
    const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(pairs, pairs));
  }
  void store_first_codes(int8_t* p, int n) const {
    int8_t lanes[width];
    store_codes(lanes);
    memcpy(p, lanes, static_cast<size_t>(n));
  }
  __m128i halves() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store_f16(uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves());
  }
  void store_first_f16(uint16_t* p, int n) const {
    uint16_t lanes[width];
    store_f16(lanes);
    memcpy(p, lanes, sizeof(uint16_t) * static_cast<size_t>(n));
  }
  float sum() const {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  float max() const {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }

  friend F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
};

inline void hold(F32& a) { __asm__("" : "+x"(a.v)); }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F32 round(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32 reciprocal(F32 a) { return F32::broadcast(1.0f) / a; }
inline F32 round_f16(F32 a) { return {_mm256_cvtph_ps(a.halves())}; }
inline F32 fraction(F32 x) { return {_mm256_sub_ps(x.v, _mm256_floor_ps(x.v))}; }
inline F32 scale2(F32 a, F32 x) {
  const __m256 whole = _mm256_floor_ps(_mm256_max_ps(x.v, _mm256_set1_ps(-126.0f)));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), exponent))};
}

inline void transpose(F32 (&m)[F32::width]) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(m[i].v, m[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(m[i].v, m[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; ++half) {
      fours[i + 2 * half] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0x44);
      fours[i + 2 * half + 1] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    m[i].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    m[i + 4].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

inline F32 sum_each(const F32 (&m)[F32::width]) {
  __m256 halves[4], quarters[2];  // of a row and of the fourth one after it; of these and of the next ones
  for (int i = 0; i < 4; ++i) {
    halves[i] = _mm256_add_ps(_mm256_permute2f128_ps(m[i].v, m[i + 4].v, 0x20),
                              _mm256_permute2f128_ps(m[i].v, m[i + 4].v, 0x31));
  }
  for (int i = 0; i < 2; ++i) {
    quarters[i] = _mm256_add_ps(_mm256_shuffle_ps(halves[2 * i], halves[2 * i + 1], 0x44),
                                _mm256_shuffle_ps(halves[2 * i], halves[2 * i + 1], 0xee));
  }
  return {_mm256_add_ps(_mm256_shuffle_ps(quarters[0], quarters[1], 0x88),
                        _mm256_shuffle_ps(quarters[0], quarters[1], 0xdd))};
}

}  // namespace ssmquant::SSMQUANT_ISA
