// Subnormal numbers as zeros.
#pragma once

#include "simd/simd.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ssmquant::SSMQUANT_ISA {

// While it lives, subnormal results and operands of this thread are zeros. A state that is forgotten, and the share of a token
// long past, shrink to such numbers, which nothing needs and which some processors compute a hundred times slower.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"(before_ | uint64_t{1} << 24));
  }
  ~FlushSubnormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#else
  FlushSubnormals() {}
#endif

 public:
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;
};

}  // namespace ssmquant::SSMQUANT_ISA
