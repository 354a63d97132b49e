// Dot of four columns: ARMv8.2 dot product, or the same from products of pairs (any AArch64); beside it, ARMv8.6 products of
// two rows with two columns. Both operands are signed.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

struct Dot {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  static constexpr bool pairs = true;
  static constexpr int rows = 6;
#else
  static constexpr bool pairs = false;
  static constexpr int rows = 5;
#endif
  static constexpr int width = 4, vectors = 4, offset = 0;
  using Sum = int32x4_t;
  using Weight = int8x16_t;
  using Input = int8x16_t;

  static Sum all(int32_t value) { return vdupq_n_s32(value); }
  static Weight load(const uint8_t* bytes) { return vreinterpretq_s8_u8(vld1q_u8(bytes)); }
  static void store(uint8_t* bytes, Weight weight) { vst1q_u8(bytes, vreinterpretq_u8_s8(weight)); }
  static Input broadcast(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static Weight codes(const int8_t* x) { return vld1q_s8(x); }
  static Input inputs(const int8_t* x) { return vld1q_s8(x); }
  static Sum add(Sum sum, Weight weight, Input input) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, weight, input);
#else
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(weight), vget_low_s8(input)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(weight, input));
    return vaddq_s32(sum, vpaddq_s32(low, high));
#endif
  }
  static Sum add_small(Sum sum, Weight weight, Input input) { return add(sum, weight, input); }
#if defined(__ARM_FEATURE_MATMUL_INT8)
  struct Pair {
    int8x16_t first, second;
  };
  static Pair pair(Weight k, Weight next_k) {
    const int32x4_t a = vreinterpretq_s32_s8(k), b = vreinterpretq_s32_s8(next_k);
    return {vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))};
  }
  static Input two_rows(const int8_t* row, const int8_t* next_row) { return vcombine_s8(vld1_s8(row), vld1_s8(next_row)); }
  static void turn(Sum& a, Sum& b) {
    const int64x2_t upper = vreinterpretq_s64_s32(a), lower = vreinterpretq_s64_s32(b);
    a = vreinterpretq_s32_s64(vzip1q_s64(upper, lower));
    b = vreinterpretq_s32_s64(vzip2q_s64(upper, lower));
  }
  static void add_pair(Sum& a, Sum& b, Pair weight, Input rows) {
    a = vmmlaq_s32(a, rows, weight.first);
    b = vmmlaq_s32(b, rows, weight.second);
  }
#endif
  static Weight low(Weight bytes) { return vandq_s8(bytes, vdupq_n_s8(15)); }
  static Weight high(Weight bytes) {
    return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(bytes), 4));
  }
  struct Affine {
    int8x16_t times, plus;  // in each of a column's four bytes
  };
  static Affine affine(const uint8_t* bytes) {
    static constexpr uint8_t column[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    uint32_t four;
    memcpy(&four, bytes, 4);
    const uint8x16_t both = vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), vld1q_u8(column));
    const int8x16_t times = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    return {times, vnegq_s8(vmulq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), times))};
  }
  static Weight expand(Weight bytes, Affine affine) { return vmlaq_s8(affine.plus, bytes, affine.times); }
  using Block = int32x4_t;
  struct Grid {
    int32x4_t times, zero;
  };
  static Grid grid(const uint8_t* bytes) {
    uint32_t four;
    memcpy(&four, bytes, 4);
    const uint32x4_t both = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    return {vreinterpretq_s32_u32(vandq_u32(both, vdupq_n_u32(15))), vreinterpretq_s32_u32(vshrq_n_u32(both, 4))};
  }
  static Block begin(Grid grid, int32_t less) { return vmulq_n_s32(grid.zero, less); }
  static Block add_to_block(Block block, Weight weight, Input input) { return add(block, weight, input); }
  static Sum scaled(Sum sum, Block block, Grid grid) { return vmlaq_s32(sum, block, grid.times); }
  static Sum load_sum(const int32_t* from) { return vld1q_s32(from); }
  static void store_sum(int32_t* to, Sum sum) { vst1q_s32(to, sum); }
  static void hold(Sum& sum) { __asm__("" : "+w"(sum)); }
  static Sum join(Sum a, Sum b) { return vaddq_s32(a, b); }
  static F32 to_float(Sum sum) { return {vcvtq_f32_s32(sum)}; }
  static Sum fours(const int8_t* x) { return add(all(0), vdupq_n_s8(1), vld1q_s8(x)); }
  static int32_t total(const int8_t* x, int64_t n) {
    Sum sum = vdupq_n_s32(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) sum = add(sum, vdupq_n_s8(1), vld1q_s8(x + i));
    int32_t all = vaddvq_s32(sum);
    for (; i < n; ++i) all += x[i];
    return all;
  }
};

}  // namespace ssmquant::SSMQUANT_ISA
