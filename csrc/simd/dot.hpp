// `Dot`, sums of products of int8 codes in vector registers.
//
// One product takes four neighbours along K of a row of x and of each of `Dot::width` columns of the weight, whose bytes lie
// column after column. What each version defines:
//   width         columns, the lanes of a Sum; those of F32
//   vectors       Sums side by side, so that a panel has width * vectors columns
//   rows          most rows of x that fit into the registers at once
//   offset        what is added to an int8 code of the weight when it is packed into a byte
//   Sum, Weight, Input          registers: exact int32 sums; 4 codes of each column; 4 codes of x, the same in each column
//   all(value) -> Sum           load(bytes) -> Weight       broadcast(x) -> Input
//   codes(x) -> Weight, inputs(x) -> Input      4 * width codes as they lie, in each lane four neighbours of its own
//   load_sum, store_sum         int32 sums from memory and to it
//   add(sum, weight, input)     sum + products with the int8 codes + offset * (the four codes of x)
//   add_small(sum, weight, input)   sum + products with bytes in 0..15
//   low(weight), high(weight)   -> Weight, nibbles as bytes
//   pairs         whether there are products of two rows with two columns, eight neighbours along K at once. If so:
//     pair(k, next_k) -> Pair         of the weights of four neighbours along K and of the next four
//     two_rows(x, next_x) -> Input    eight codes of each of two rows
//     turn(a, b)                      the Sums of two rows become what add_pair adds to, and back
//     add_pair(a, b, pair, rows)      adds the products with the int8 codes to both
//   Affine, affine(bytes)       multiplier and zero of each column, from the low and the high nibble of a byte each
//   expand(weight, affine)      -> Weight, (byte - zero) * multiplier as an int8 code, of bytes in 0..15
//   Grid, grid(bytes)           multiplier and zero of each column, as of an Affine
//   Block, begin(grid, less)    sums of products with (byte - zero), bytes in 0..15, of at most 16 codes along K, which have room
//                               in 16 bits; less is minus the sum of these codes of x
//   add_to_block(block, weight, input)   block + products with bytes
//   scaled(sum, block, grid)    sum + multiplier * block
//   store(bytes, weight)        as it was loaded
//   join(a, b)                  a + b
//   hold(sum)                   the compiler must have the sum in a register here. Behind a loop that adds to many sums, this
//                               keeps gcc 12 from writing all of them to memory in each round.
//   to_float(sum) -> F32        rounded as the processor rounds, to nearest even
//   total(x, n) -> int32        sum of n codes
//   fours(x) -> Sum             sums of four neighbours each, of 4 * width codes
#pragma once

#include "simd/repeat.hpp"
#include "simd/simd.hpp"

#if defined(__AVX512VNNI__)
#include "simd/avx512_dot.hpp"
#elif defined(__AVX2__)
#include "simd/avx2_dot.hpp"
#elif defined(__ARM_NEON)
#include "simd/neon_dot.hpp"
#else
#include "simd/generic_dot.hpp"
#endif

namespace ssmquant::SSMQUANT_ISA {

static_assert(Dot::width == F32::width, "a Sum becomes an F32");

}  // namespace ssmquant::SSMQUANT_ISA
