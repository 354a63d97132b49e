// F32 of four floats (AArch64's vectors, which every such processor has). What each operation means is said in generic.hpp.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

struct F32 {
  static constexpr int width = 4;
  static constexpr int registers = 32;
  float32x4_t v;

  template <class Element>
  struct Lanes {
    Element values[width] = {};
    Lanes() = default;
    Lanes(const Element* p, int n) { memcpy(values, p, sizeof(Element) * static_cast<size_t>(n)); }
    void store(Element* p, int n) const { memcpy(p, values, sizeof(Element) * static_cast<size_t>(n)); }
  };

  static F32 load(const float* p) { return {vld1q_f32(p)}; }
  static F32 broadcast(float x) { return {vdupq_n_f32(x)}; }
  static F32 zero() { return {vdupq_n_f32(0.0f)}; }
  static F32 load_first(const float* p, int n) { return load(Lanes<float>(p, n).values); }
  static F32 load_i8(const int8_t* p) {
    uint32_t bytes;
    memcpy(&bytes, p, sizeof(bytes));
    const int16x4_t halves = vget_low_s16(vmovl_s8(vcreate_s8(bytes)));
    return {vcvtq_f32_s32(vmovl_s16(halves))};
  }
  static F32 load_first_i8(const int8_t* p, int n) { return load_i8(Lanes<int8_t>(p, n).values); }
  static F32 load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
  static F32 load_first_f16(const uint16_t* p, int n) { return load_f16(Lanes<uint16_t>(p, n).values); }
  static F32 load_bf16(const uint16_t* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))}; }
  template <int at, int offset>
  static F32 byte_of(const uint8_t* p) {
    uint8x16_t four = vld1q_u8(p);
    if (offset) four = veorq_u8(four, vdupq_n_u8(128));
    const int32x4_t high = vshlq_s32(vreinterpretq_s32_u8(four), vdupq_n_s32(24 - 8 * at));
    return {vcvtq_f32_s32(vshrq_n_s32(high, 24))};
  }
  template <int shift>
  static F32 nibble_of(const uint8_t* p) {
    const uint32x4_t low = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vdupq_n_s32(-shift));
    return {vcvtq_f32_u32(vandq_u32(low, vdupq_n_u32(15)))};
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void store_first(float* p, int n) const {
    Lanes<float> lanes;
    store(lanes.values);
    lanes.store(p, n);
  }
  void store_codes(int8_t* p) const {
    const float32x4_t limited = vminq_f32(vmaxq_f32(v, vdupq_n_f32(-127.0f)), vdupq_n_f32(127.0f));
    const int16x4_t halves = vmovn_s32(vcvtnq_s32_f32(limited));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    memcpy(p, &four, sizeof(four));
  }
  void store_first_codes(int8_t* p, int n) const {
    Lanes<int8_t> lanes;
    store_codes(lanes.values);
    lanes.store(p, n);
  }
  void store_f16(uint16_t* p) const { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  void store_first_f16(uint16_t* p, int n) const {
    Lanes<uint16_t> lanes;
    store_f16(lanes.values);
    lanes.store(p, n);
  }
  float sum() const { return vaddvq_f32(v); }
  float max() const { return vmaxvq_f32(v); }

  friend F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
  friend F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
  friend F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
  friend F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
};

inline void hold(F32& a) { __asm__("" : "+w"(a.v)); }
inline F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {vminq_f32(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {vmaxq_f32(a.v, b.v)}; }
inline F32 abs(F32 a) { return {vabsq_f32(a.v)}; }
inline F32 round(F32 a) { return {vrndnq_f32(a.v)}; }
inline F32 reciprocal(F32 a) { return F32::broadcast(1.0f) / a; }
inline F32 round_f16(F32 a) { return {vcvt_f32_f16(vcvt_f16_f32(a.v))}; }
inline F32 fraction(F32 x) { return {vsubq_f32(x.v, vrndmq_f32(x.v))}; }
inline F32 scale2(F32 a, F32 x) {
  const int32x4_t exponent = vshlq_n_s32(vcvtmq_s32_f32(vmaxq_f32(x.v, vdupq_n_f32(-126.0f))), 23);
  return {vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.v), exponent))};
}

inline void transpose(F32 (&m)[F32::width]) {
  const float32x4x2_t low = vtrnq_f32(m[0].v, m[1].v), high = vtrnq_f32(m[2].v, m[3].v);
  for (int i = 0; i < 2; ++i) {
    m[i].v = vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i]));
    m[i + 2].v = vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i]));
  }
}

inline F32 sum_each(const F32 (&m)[F32::width]) {
  return {vpaddq_f32(vpaddq_f32(m[0].v, m[1].v), vpaddq_f32(m[2].v, m[3].v))};
}

}  // namespace ssmquant::SSMQUANT_ISA
