#!/usr/bin/env bash
# Runs the C++ kernel tests under sanitizers, on every instruction set that this processor has: addresses and undefined
# behaviour in one build, data races in another.
#
#   scripts/sanitize.sh [build folder]        JOBS=1 for a small machine
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$repo/build/sanitize}
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

for sanitizers in address,undefined thread; do
  cmake -S "$repo" -B "$build/$sanitizers" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSSMQUANT_PYTHON=OFF \
    -DSSMQUANT_CXX_TESTS=ON \
    -DCMAKE_CXX_FLAGS="-fsanitize=$sanitizers -fno-sanitize-recover=all -fno-omit-frame-pointer" > /dev/null
  cmake --build "$build/$sanitizers" --target kernel_test -j "${JOBS:-$(nproc)}"
  echo "== $sanitizers"
  "$repo/scripts/kernel_tests.sh" "$build/$sanitizers"
done
