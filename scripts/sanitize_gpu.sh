#!/usr/bin/env bash
# Runs every GPU kernel on small and odd sizes under NVIDIA's compute-sanitizer: accesses out of bounds, then races in
# shared memory. Needs a GPU and the CUDA toolkit's compute-sanitizer; PYTHON names the interpreter that has ssmquant.
#
#   scripts/sanitize_gpu.sh [pytest arguments]
set -euo pipefail

cd "$(dirname "$0")/.."
for tool in memcheck racecheck; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1 --print-limit 5 \
    "${PYTHON:-python}" -m pytest -q -p no:cacheprovider tests/ops/test_triton_gpu_cases.py "$@"
done
