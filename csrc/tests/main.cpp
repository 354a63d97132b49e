// Runs every test of the kernels with the instruction set that SSMQUANT_ISA names, or the best.
//
//   kernel_test [name ...]       the tests of these names; -name: all but it
#include <cstring>

#include "kernels/kernels.hpp"
#include "tests/test.hpp"

int main(int argc, char** argv) {
  using ssmquant::tests::Test;
  const char* isa = ssmquant::kernels().isa;
  int count = 0;
  for (const Test* test = Test::first; test; test = test->next) {
    bool wanted = argc < 2 || argv[1][0] == '-';
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], test->name) == 0) wanted = true;
      if (argv[i][0] == '-' && std::strcmp(argv[i] + 1, test->name) == 0) wanted = false;
    }
    if (!wanted) continue;
    test->run();
    std::printf("%s: %s passed\n", isa, test->name);
    ++count;
  }
  CHECK(count > 0, "no test has that name");
  return 0;
}
