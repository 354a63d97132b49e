#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/kernels.hpp"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ssmquant {

namespace generic {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avxvnni {
extern const Kernels table;
}
namespace avx512vnni {
extern const Kernels table;
}
#elif defined(__aarch64__)
namespace dotprod {
extern const Kernels table;
}
namespace i8mm {
extern const Kernels table;
}
#endif

namespace {

struct Level {
  const Kernels* table;
  bool available;
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avxvnni() {
  // Leaf 7, sub-leaf 1, EAX bit 4; gcc 12's __builtin_cpu_supports does not know the name.
  unsigned a = 7, b = 0, c = 1, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return has_avx2() && (a >> 4 & 1u);
}

bool has_avx512vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

// Best first.
const Level* levels(int* count) {
#if defined(__x86_64__)
  static const Level all[] = {{&avx512vnni::table, has_avx512vnni()},
                              {&avxvnni::table, has_avxvnni()},
                              {&avx2::table, has_avx2()},
                              {&generic::table, true}};
#elif defined(__aarch64__)
  const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  static const Level all[] = {{&i8mm::table, dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0},
                              {&dotprod::table, dotprod},
                              {&generic::table, true}};
#else
  static const Level all[] = {{&generic::table, true}};
#endif
  *count = static_cast<int>(sizeof(all) / sizeof(all[0]));
  return all;
}

const Kernels& choose() {
  int count = 0;
  const Level* all = levels(&count);
  const char* wanted = std::getenv("SSMQUANT_ISA");
  std::string known;
  for (int i = 0; i < count; ++i) {
    if (!all[i].available) continue;
    if (!wanted || std::strcmp(wanted, all[i].table->isa) == 0) return *all[i].table;
    known += (known.empty() ? "" : ", ") + std::string(all[i].table->isa);
  }
  throw std::invalid_argument("SSMQUANT_ISA=" + std::string(wanted) +
                              " is not an instruction set of this processor and build; it has " + known);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace ssmquant
