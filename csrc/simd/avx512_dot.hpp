// Dot of sixteen columns (AVX-512 VNNI). Its product wants one operand unsigned: the weight.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

struct Dot {
  static constexpr bool pairs = false;
  static constexpr int width = 16, vectors = 4, rows = 6, offset = 128;
  using Sum = __m512i;
  using Weight = __m512i;
  using Input = __m512i;

  static Sum all(int32_t value) { return _mm512_set1_epi32(value); }
  static Weight load(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
  static void store(uint8_t* bytes, Weight weight) { _mm512_storeu_si512(bytes, weight); }
  static Input broadcast(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  static Weight codes(const int8_t* x) {
    return _mm512_xor_si512(inputs(x), _mm512_set1_epi8(static_cast<char>(offset)));
  }
  static Input inputs(const int8_t* x) { return _mm512_loadu_si512(x); }
  static Sum add(Sum sum, Weight weight, Input input) { return _mm512_dpbusd_epi32(sum, weight, input); }
  static Sum add_small(Sum sum, Weight weight, Input input) { return add(sum, weight, input); }
  static Weight low(Weight bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
  static Weight high(Weight bytes) { return low(_mm512_srli_epi16(bytes, 4)); }
  struct Affine {
    __m512i times, plus;  // in each half of a column's four bytes; in each of its bytes
  };
  static Affine affine(const uint8_t* bytes) {
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m512i times = _mm512_and_si512(both, all(15)), zero = _mm512_srli_epi32(both, 4);
    const __m512i less = _mm512_mullo_epi32(_mm512_mullo_epi16(zero, times), all(0x01010101));
    return {_mm512_or_si512(times, _mm512_slli_epi32(times, 16)),
            _mm512_sub_epi8(_mm512_set1_epi8(static_cast<char>(offset)), less)};
  }
  // Two bytes are multiplied at once: no product is above 15 * 15, so none reaches its neighbour.
  static Weight expand(Weight bytes, Affine affine) {
    return _mm512_add_epi8(_mm512_mullo_epi16(bytes, affine.times), affine.plus);
  }
  // A block is the lower half of a column; whatever is in the upper half, the multiplier there is zero.
  using Block = __m512i;
  struct Grid {
    __m512i times, zero;
  };
  static Grid grid(const uint8_t* bytes) {
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return {_mm512_and_si512(both, all(15)), _mm512_srli_epi32(both, 4)};
  }
  static Block begin(Grid grid, int32_t less) { return _mm512_mullo_epi16(grid.zero, all(less)); }
  static Block add_to_block(Block block, Weight weight, Input input) { return add(block, weight, input); }
  static Sum scaled(Sum sum, Block block, Grid grid) { return _mm512_dpwssd_epi32(sum, block, grid.times); }
  static Sum load_sum(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void store_sum(int32_t* to, Sum sum) { _mm512_storeu_si512(to, sum); }
  static void hold(Sum& sum) { __asm__("" : "+v"(sum)); }
  static Sum join(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static F32 to_float(Sum sum) { return {_mm512_cvtepi32_ps(sum)}; }
  static Sum fours(const int8_t* x) {
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_loadu_si512(x));
  }
  static int32_t total(const int8_t* x, int64_t n) {
    const __m512i one = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) sum = _mm512_dpbusd_epi32(sum, one, _mm512_loadu_si512(x + i));
    if (i < n) {
      const __mmask64 rest = _cvtu64_mask64(~uint64_t{0} >> (64 - (n - i)));
      sum = _mm512_dpbusd_epi32(sum, one, _mm512_maskz_loadu_epi8(rest, x + i));
    }
    return _mm512_reduce_add_epi32(sum);
  }
};

}  // namespace ssmquant::SSMQUANT_ISA
