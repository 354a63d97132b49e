// Runs every test of the kernels with the instruction set that SSMQUANT_ISA names, or the best.
//
//   kernel_test [name ...]
#include <cstring>

#include "kernels/kernels.hpp"
#include "tests/test.hpp"

int main(int argc, char** argv) {
  using ssmquant::tests::Test;
  const char* isa = ssmquant::kernels().isa;
  int count = 0;
  for (const Test* test = Test::first; test; test = test->next) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], test->name) == 0;
    if (!wanted) continue;
    test->run();
    std::printf("%s: %s passed\n", isa, test->name);
    ++count;
  }
  CHECK(count > 0, "no test has that name");
  return 0;
}
