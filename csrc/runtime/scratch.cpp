#include "runtime/scratch.hpp"

#include <cstdlib>
#include <memory>
#include <new>

namespace ssmquant {

namespace {

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

struct Scratch {
  std::unique_ptr<float, Free> memory;
  int64_t size = 0;
};

thread_local Scratch own;

}  // namespace

float* scratch(int64_t floats) {
  if (floats > own.size) {
    constexpr int64_t line = 64 / sizeof(float);
    const int64_t size = (floats + line - 1) / line * line;
    own.memory.reset();
    own.size = 0;
    own.memory.reset(static_cast<float*>(std::aligned_alloc(64, sizeof(float) * static_cast<size_t>(size))));
    if (!own.memory) throw std::bad_alloc();
    own.size = size;
  }
  return own.memory.get();
}

}  // namespace ssmquant
