// Dot of eight columns: AVX-VNNI, or the same from products of pairs (AVX2).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

#if defined(__AVXVNNI__)

struct DotProducts {
  static constexpr int rows = 6, offset = 128;
  using Weight = __m256i;

  static Weight of(__m256i codes) { return codes; }
  static void store(uint8_t* bytes, Weight weight) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), weight); }
  static __m256i add(__m256i sum, Weight weight, __m256i input) { return _mm256_dpbusd_avx_epi32(sum, weight, input); }
  static __m256i add_small(__m256i sum, Weight weight, __m256i input) { return add(sum, weight, input); }
  static __m256i bytes_of(Weight weight) { return weight; }
  static Weight low(Weight bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
  static Weight high(Weight bytes) { return low(_mm256_srli_epi16(bytes, 4)); }
  // A block is the lower half of a column; whatever is in the upper half, the multiplier there is zero.
  static __m256i times_of_block(__m256i times) { return times; }
  static __m256i add_to_block(__m256i block, Weight weight, __m256i input) { return add(block, weight, input); }
  static __m256i scaled(__m256i sum, __m256i block, __m256i times) { return _mm256_dpwssd_avx_epi32(sum, block, times); }
};

#else

// vpmaddubsw adds pairs of products in 16 bits. With a magnitude of the weight as its unsigned operand, and the sign moved to
// x, no pair can saturate: 2 * 128 * 127 < 2^15.
struct DotProducts {
  static constexpr int rows = 4, offset = 0;
  struct Weight {
    __m256i codes, magnitude;
  };

  static Weight of(__m256i codes) { return {codes, _mm256_abs_epi8(codes)}; }
  static void store(uint8_t* bytes, Weight weight) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), weight.codes);
  }
  static __m256i add_pairs(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static __m256i add(__m256i sum, Weight weight, __m256i input) {
    return add_pairs(sum, _mm256_maddubs_epi16(weight.magnitude, _mm256_sign_epi8(input, weight.codes)));
  }
  static __m256i add_small(__m256i sum, Weight weight, __m256i input) {
    return add_pairs(sum, _mm256_maddubs_epi16(weight.codes, input));
  }
  static Weight small(__m256i bytes) { return {bytes, bytes}; }
  static __m256i bytes_of(Weight weight) { return weight.codes; }
  static Weight low(Weight bytes) { return small(_mm256_and_si256(bytes.codes, _mm256_set1_epi8(15))); }
  static Weight high(Weight bytes) { return low(small(_mm256_srli_epi16(bytes.codes, 4))); }
  // A block is the sum of both halves of a column. Zero times the total goes to the lower one, where the sum stays below
  // 15 * 127 * 16 for every zero.
  static __m256i times_of_block(__m256i times) { return _mm256_or_si256(times, _mm256_slli_epi32(times, 16)); }
  static __m256i add_to_block(__m256i block, Weight weight, __m256i input) {
    return _mm256_add_epi16(block, _mm256_maddubs_epi16(weight.codes, input));
  }
  static __m256i scaled(__m256i sum, __m256i block, __m256i times) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(block, times));
  }
};

#endif

struct Dot : DotProducts {
  static constexpr bool pairs = false;
  static constexpr int width = 8, vectors = 2;
  using Sum = __m256i;
  using Input = __m256i;

  static Weight load(const uint8_t* bytes) { return of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes))); }
  static Sum all(int32_t value) { return _mm256_set1_epi32(value); }
  static Input broadcast(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  static Weight codes(const int8_t* x) {
    return of(_mm256_xor_si256(inputs(x), _mm256_set1_epi8(static_cast<char>(offset))));
  }
  static Input inputs(const int8_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
  struct Affine {
    __m256i times, plus;  // in each half of a column's four bytes; in each of its bytes
  };
  static Affine affine(const uint8_t* bytes) {
    const __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    const __m256i times = _mm256_and_si256(both, all(15)), zero = _mm256_srli_epi32(both, 4);
    const __m256i less = _mm256_mullo_epi32(_mm256_mullo_epi16(zero, times), all(0x01010101));
    return {_mm256_or_si256(times, _mm256_slli_epi32(times, 16)),
            _mm256_sub_epi8(_mm256_set1_epi8(static_cast<char>(offset)), less)};
  }
  // Two bytes are multiplied at once: no product is above 15 * 15, so none reaches its neighbour.
  static Weight expand(Weight bytes, Affine affine) {
    return of(_mm256_add_epi8(_mm256_mullo_epi16(bytes_of(bytes), affine.times), affine.plus));
  }
  using Block = __m256i;
  struct Grid {
    __m256i times, zero;
  };
  static Grid grid(const uint8_t* bytes) {
    const __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    return {times_of_block(_mm256_and_si256(both, all(15))), _mm256_srli_epi32(both, 4)};
  }
  static Block begin(Grid grid, int32_t less) { return _mm256_mullo_epi16(grid.zero, all(less)); }
  static Sum scaled(Sum sum, Block block, Grid grid) { return DotProducts::scaled(sum, block, grid.times); }
  static Sum load_sum(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static void store_sum(int32_t* to, Sum sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum); }
  static void hold(Sum& sum) { __asm__("" : "+x"(sum)); }
  static Sum join(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static F32 to_float(Sum sum) { return {_mm256_cvtepi32_ps(sum)}; }
  static Sum fours(const int8_t* x) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), _mm256_set1_epi16(1));
  }
  static int32_t total(const int8_t* x, int64_t n) {
    __m256i sum = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) sum = _mm256_add_epi32(sum, fours(x + i));
    int32_t lanes[8], all = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
    for (const int32_t lane : lanes) all += lane;
    for (; i < n; ++i) all += x[i];
    return all;
  }
};

}  // namespace ssmquant::SSMQUANT_ISA
