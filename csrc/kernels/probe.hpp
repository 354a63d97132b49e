// What measures the limits of the machine: a read that does nothing else, and integer products that read nothing.
#pragma once

#include <cstdint>

namespace ssmquant {

struct ProbeKernels {
  // Reads `bytes` bytes once and returns something that depends on all of them. With `ahead` 0 it reads at four places in
  // turns, otherwise in order, and asks for the line so many bytes ahead of each: which is faster differs by processor.
  uint64_t (*read)(const uint8_t* from, int64_t bytes, int64_t ahead);
  // Multiplies and adds int8 codes in registers, `rounds` times over, as fast as the instruction set can; stores something
  // that depends on all products and returns how many operations it was (a multiplication and an addition are two).
  int64_t (*multiply)(int64_t rounds, int32_t* result);
};

}  // namespace ssmquant
