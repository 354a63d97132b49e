// Loops that are unrolled for certain.
#pragma once

#include <type_traits>
#include <utility>

#define SSMQUANT_INLINE __attribute__((always_inline))

namespace ssmquant::SSMQUANT_ISA {

template <class Body, int... I>
SSMQUANT_INLINE inline void repeat(std::integer_sequence<int, I...>, const Body& body) {
  (body(std::integral_constant<int, I>{}), ...);
}

// body(0) ... body(n - 1) with constants of the compiler's: only so does an array of registers stay in registers.
template <int n, class Body>
SSMQUANT_INLINE inline void repeat(const Body& body) {
  repeat(std::make_integer_sequence<int, n>{}, body);
}

}  // namespace ssmquant::SSMQUANT_ISA
