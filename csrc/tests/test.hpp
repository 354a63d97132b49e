// What the test program of the kernels consists of: sources that each declare tests, and a main that runs them all.
//
//   TEST(linear) { CHECK(got == expected, "k = %d", k); }
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace ssmquant::tests {

struct Test {
  Test(const char* name, void (*run)()) : name(name), run(run), next(first) { first = this; }

  const char* name;
  void (*run)();
  Test* next;
  static inline Test* first = nullptr;
};

#define TEST(name)                                                    \
  static void test_##name();                                          \
  static ::ssmquant::tests::Test register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition, ...)                                             \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                  \
      std::fputc('\n', stderr);                                           \
      std::exit(1);                                                       \
    }                                                                     \
  } while (false)

// Random arguments, the same on every machine (std distributions are not).
class Draw {
 public:
  explicit Draw(uint32_t seed) : engine_(seed) {}

  int below(int n) { return static_cast<int>(engine_() % static_cast<uint32_t>(n)); }
  int8_t code() { return static_cast<int8_t>(below(255) - 127); }
  float uniform(float low, float high) { return low + (high - low) * (static_cast<float>(engine_() >> 8) * 0x1p-24f); }

  std::vector<int8_t> codes(int64_t n) {
    std::vector<int8_t> all(n);
    for (int8_t& code : all) code = this->code();
    return all;
  }
  std::vector<float> floats(int64_t n, float low, float high) {
    std::vector<float> all(n);
    for (float& value : all) value = uniform(low, high);
    return all;
  }

 private:
  std::mt19937 engine_;
};

}  // namespace ssmquant::tests
