// F32 of one float: portable C++, and the meaning of every other version.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

struct F32 {
  static constexpr int width = 1;
  static constexpr int registers = 16;  // that the processor has for vectors: kernels keep that many sums at most
  float v;

  static F32 load(const float* p) { return {*p}; }
  static F32 broadcast(float x) { return {x}; }
  static F32 zero() { return {0.0f}; }
  // The first n < width lanes; the others are zero, and memory behind the n elements is not touched.
  static F32 load_first(const float*, int) { return zero(); }
  static F32 load_i8(const int8_t* p) { return {static_cast<float>(*p)}; }
  static F32 load_first_i8(const int8_t*, int) { return zero(); }
  // Half precision, as bits.
  static F32 load_f16(const uint16_t* p) {
    const uint32_t magnitude = *p & 0x7fffu, sign = static_cast<uint32_t>(*p & 0x8000u) << 16;
    // The bits as a float32 number are 2^112 too small, subnormal ones included; infinity and NaN need the largest exponent.
    float x = of_bits(magnitude << 13) * of_bits(0x77800000u);
    if (magnitude >= 0x7c00u) x = of_bits(0x7f800000u | magnitude << 13);
    return {of_bits(to_bits(x) | sign)};
  }
  static F32 load_first_f16(const uint16_t*, int) { return zero(); }
  // bfloat16, as bits.
  static F32 load_bf16(const uint16_t* p) { return {of_bits(static_cast<uint32_t>(*p) << 16)}; }
  // Each lane has four bytes. Byte `at`, a signed code to which `offset` (0 or 128) has been added.
  template <int at, int offset>
  static F32 byte_of(const uint8_t* p) {
    return {static_cast<float>(static_cast<int8_t>(p[at] ^ offset))};
  }
  // The four bits from bit `shift` on, as a number from 0 to 15.
  template <int shift>
  static F32 nibble_of(const uint8_t* p) {
    return {static_cast<float>(p[shift / 8] >> shift % 8 & 15)};
  }
  void store(float* p) const { *p = v; }
  void store_first(float*, int) const {}
  // Rounded half to even and clamped to [-127, 127] (numerics.round_clamp).
  void store_codes(int8_t* p) const {
    const float limited = v < -127.0f ? -127.0f : v > 127.0f ? 127.0f : v;
    *p = static_cast<int8_t>(std::nearbyintf(limited));
  }
  void store_first_codes(int8_t*, int) const {}
  // Rounded half to even.
  void store_f16(uint16_t* p) const {
    const uint32_t sign = to_bits(v) >> 16 & 0x8000u, bits = to_bits(v) & 0x7fffffffu;
    uint32_t half;
    if (bits >= 0x7f800000u) {
      half = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (bits >= 0x477ff000u) {  // rounds to 65536 or above
      half = 0x7c00u;
    } else if (bits >= 0x38800000u) {  // normal numbers
      half = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
    } else {  // subnormal ones: the sum with 0.5 has their unit as its last place, and rounds
      half = to_bits(of_bits(bits) + 0.5f) - 0x3f000000u;
    }
    *p = static_cast<uint16_t>(half | sign);
  }
  void store_first_f16(uint16_t*, int) const {}
  float sum() const { return v; }
  float max() const { return v; }

  friend F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
  friend F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
  friend F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
  friend F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }

 private:
  static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
  }
  static uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(x));
    return bits;
  }
  friend F32 scale2(F32 a, F32 x);
};

inline void hold(F32&) {}  // the compiler must have it in a register here; see Dot::hold
inline F32 fma(F32 a, F32 b, F32 c) { return {std::fma(a.v, b.v, c.v)}; }
inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 abs(F32 a) { return {std::fabs(a.v)}; }
// Half to even.
inline F32 round(F32 a) { return {std::nearbyintf(a.v)}; }
// 1 / a to about a unit in the last place, for 2^-125 < |a| < 2^126.
inline F32 reciprocal(F32 a) { return {1.0f / a.v}; }
// The nearest half-precision number.
inline F32 round_f16(F32 a) {
  uint16_t half;
  a.store_f16(&half);
  return F32::load_f16(&half);
}
// x - floor(x)
inline F32 fraction(F32 x) { return {x.v - std::floor(x.v)}; }
// a * 2^floor(x) for 1/2 < a <= 2 and x < 127; below 2^-126 it is 0 or some number not above 2^-125.
inline F32 scale2(F32 a, F32 x) {
  const float limited = x.v < -126.0f ? -126.0f : x.v;
  const uint32_t exponent = static_cast<uint32_t>(static_cast<int32_t>(std::floor(limited))) << 23;
  return {F32::of_bits(F32::to_bits(a.v) + exponent)};
}

// Rows become columns.
inline void transpose(F32 (&)[F32::width]) {}
// Lane i is the sum of the lanes of m[i].
inline F32 sum_each(const F32 (&m)[F32::width]) { return m[0]; }

}  // namespace ssmquant::SSMQUANT_ISA
