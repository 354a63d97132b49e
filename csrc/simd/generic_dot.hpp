// Dot of one column: portable C++, the meaning of every other version.
#pragma once

#include <cstdint>
#include <cstring>

namespace ssmquant::SSMQUANT_ISA {

struct Dot {
  static constexpr bool pairs = false;
  static constexpr int width = 1, vectors = 4, rows = 2, offset = 0;
  struct Four {
    int8_t code[4];
  };
  using Sum = int32_t;
  using Weight = Four;
  using Input = Four;

  static Sum all(int32_t value) { return value; }
  static Weight load(const uint8_t* bytes) {
    Four four;
    memcpy(four.code, bytes, 4);
    return four;
  }
  static void store(uint8_t* bytes, Weight weight) { memcpy(bytes, weight.code, 4); }
  static Input broadcast(const int8_t* x) {
    Four four;
    memcpy(four.code, x, 4);
    return four;
  }
  static Weight codes(const int8_t* x) { return broadcast(x); }
  static Input inputs(const int8_t* x) { return broadcast(x); }
  static Sum add(Sum sum, Weight weight, Input input) {
    for (int i = 0; i < 4; ++i) sum += weight.code[i] * input.code[i];
    return sum;
  }
  static Sum add_small(Sum sum, Weight weight, Input input) { return add(sum, weight, input); }
  static Weight low(Weight bytes) {
    for (int8_t& code : bytes.code) code = static_cast<int8_t>(code & 15);
    return bytes;
  }
  static Weight high(Weight bytes) {
    for (int8_t& code : bytes.code) code = static_cast<int8_t>(static_cast<uint8_t>(code) >> 4);
    return bytes;
  }
  struct Affine {
    int times, zero;
  };
  static Affine affine(const uint8_t* byte) { return {*byte & 15, *byte >> 4}; }
  static Weight expand(Weight bytes, Affine affine) {
    for (int8_t& code : bytes.code) code = static_cast<int8_t>((code - affine.zero) * affine.times);
    return bytes;
  }
  using Block = int32_t;
  struct Grid {
    int32_t times, zero;
  };
  static Grid grid(const uint8_t* byte) { return {*byte & 15, *byte >> 4}; }
  static Block begin(Grid grid, int32_t less) { return grid.zero * less; }
  static Block add_to_block(Block block, Weight weight, Input input) { return add(block, weight, input); }
  static Sum scaled(Sum sum, Block block, Grid grid) { return sum + block * grid.times; }
  static Sum load_sum(const int32_t* from) { return *from; }
  static void store_sum(int32_t* to, Sum sum) { *to = sum; }
  static void hold(Sum&) {}
  static Sum join(Sum a, Sum b) { return a + b; }
  static F32 to_float(Sum sum) { return {static_cast<float>(sum)}; }
  static Sum fours(const int8_t* x) { return total(x, 4); }
  static int32_t total(const int8_t* x, int64_t n) {
    int32_t all = 0;
    for (int64_t i = 0; i < n; ++i) all += x[i];
    return all;
  }
};

}  // namespace ssmquant::SSMQUANT_ISA
