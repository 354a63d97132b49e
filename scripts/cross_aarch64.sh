#!/usr/bin/env bash
# Compiles the kernels for 64-bit ARM and runs their tests in an emulated processor, on every instruction set of that family.
#
#   apt-get install g++-aarch64-linux-gnu qemu-user
#   scripts/cross_aarch64.sh [build folder]        JOBS=1 for a small machine
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$repo/build/aarch64}

cmake -S "$repo" -B "$build" -G Ninja -DSSMQUANT_PYTHON=OFF -DSSMQUANT_CXX_TESTS=ON \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ > /dev/null
cmake --build "$build" --target kernel_test -j "${JOBS:-$(nproc)}"
# The emulator itself (7.2 at least) fails where a process with threads forks.
"$repo/scripts/kernel_tests.sh" "$build" -a_fork_has_threads_of_its_own qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu
