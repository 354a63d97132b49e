#!/usr/bin/env bash
# Builds the C++ extension in place (src/ssmquant/_native*.so), for work on it: PYTHONPATH=src then uses it.
#
#   scripts/build_native.sh [build folder] [cmake options]
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$repo/build/native}
cmake -S "$repo" -B "$build" -G Ninja -DPython_EXECUTABLE="${PYTHON:-$(command -v python3)}" "${@:2}" > /dev/null
cmake --build "$build" --target _native
for module in "$build"/_native*.so; do # beside the target, then renamed: a process that has the old one mapped keeps it
  cp "$module" "$repo/src/ssmquant/.$(basename "$module").new"
  mv "$repo/src/ssmquant/.$(basename "$module").new" "$repo/src/ssmquant/$(basename "$module")"
done
