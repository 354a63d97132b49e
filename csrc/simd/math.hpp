// Functions of vectors, accurate to about one unit in the last place.
#pragma once

#include "simd/simd.hpp"

namespace ssmquant::SSMQUANT_ISA {

// 2^x for x below 127; far below the normal numbers it is 0 or some normal number that is next to nothing.
inline F32 exp2(F32 x) {
  const F32 f = fraction(x);
  // Minimax in the relative error (8e-8) among the polynomials that are 1 at 0.
  F32 p = fma(F32::broadcast(0.0018671300495043397f), f, F32::broadcast(0.009017030708491802f));
  p = fma(p, f, F32::broadcast(0.05579991266131401f));
  p = fma(p, f, F32::broadcast(0.24016444385051727f));
  p = fma(p, f, F32::broadcast(0.6931512951850891f));
  return scale2(fma(p, f, F32::broadcast(1.0f)), x);
}

// e^x, at least 2^-125 and at most 2^125: never infinity, never a subnormal number.
inline F32 exp(F32 x) {
  x = min(max(x, F32::broadcast(-86.6f)), F32::broadcast(86.6f));
  const F32 whole = round(x * F32::broadcast(1.4426950408889634f));
  // x - whole * ln 2 with ln 2 in two parts, the first of so few bits that the product is exact.
  F32 r = fma(whole, F32::broadcast(-0.693359375f), x);
  r = fma(whole, F32::broadcast(2.12194440e-4f), r);
  F32 p = fma(F32::broadcast(0.0013836835278198123f), r, F32::broadcast(0.008374824188649654f));
  p = fma(p, r, F32::broadcast(0.04166822507977486f));
  p = fma(p, r, F32::broadcast(0.16666419804096222f));
  p = fma(p, r, F32::broadcast(0.49999991059303284f));
  p = fma(p, r, F32::broadcast(1.0f));
  return scale2(fma(p, r, F32::broadcast(1.0f)), whole);
}

inline float exp(float x) { return exp(F32::broadcast(x)).max(); }  // all lanes are equal

// x / (1 + e^-x). The exponent is rounded once, so the relative error grows with -x where e^-x is what counts.
inline F32 silu(F32 x) {
  const F32 exponent = max(min(x * F32::broadcast(-1.4426950408889634f), F32::broadcast(125.0f)), F32::broadcast(-125.0f));
  return x * reciprocal(F32::broadcast(1.0f) + exp2(exponent));
}

// log(1 + e) for 0 <= e <= 1: 2 atanh(s) with s = e / (2 + e) <= 1/3, so small e keep their relative accuracy.
inline F32 log1p_unit(F32 e) {
  const F32 s = e * reciprocal(e + F32::broadcast(2.0f)), z = s * s;
  F32 p = fma(F32::broadcast(0.12206534296274185f), z, F32::broadcast(0.10696624964475632f));
  p = fma(p, z, F32::broadcast(0.14310361444950104f));
  p = fma(p, z, F32::broadcast(0.19999346137046814f));
  p = fma(p, z, F32::broadcast(0.33333340287208557f));
  return F32::broadcast(2.0f) * fma(s * z, p, s);
}

// log(1 + e^x)
inline F32 softplus(F32 x) { return max(F32::zero(), x) + log1p_unit(exp(F32::zero() - abs(x))); }

}  // namespace ssmquant::SSMQUANT_ISA
