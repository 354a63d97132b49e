#!/usr/bin/env bash
# Runs a built kernel_test on every instruction set that was built and that the processor has.
#
#   scripts/kernel_tests.sh BUILD_FOLDER [-test to leave out ...] [emulator and its options]
set -euo pipefail

build=$1
shift
left_out=()
while [[ ${1:-} == -* ]]; do
  left_out+=("$1")
  shift
done
tested=0
while read -r isa; do
  status=0
  output=$(SSMQUANT_ISA=$isa "$@" "$build/kernel_test" "${left_out[@]}" 2>&1) || status=$?
  echo "$output"
  if [ "$status" -eq 0 ]; then
    tested=$((tested + 1))
  elif ! grep -q "is not an instruction set of this processor" <<< "$output"; then
    echo "kernel_test failed on $isa with status $status" >&2
    exit 1
  fi
done < "$build/isas"
[ "$tested" -gt 0 ] || { echo "kernel_test ran on no instruction set" >&2; exit 1; }
echo "kernel_test passed on $tested instruction sets"
