#!/usr/bin/env bash
# Builds the wheel for 64-bit ARM into dist/ on another processor, as build_wheels.sh does for this one.
#
#   apt-get install g++-aarch64-linux-gnu
#   dpkg --add-architecture arm64 && apt-get update
#   apt-get download libpython3.11-dev:arm64 && dpkg -x libpython3.11-dev_*_arm64.deb headers
#   scripts/cross_wheel_aarch64.sh headers/usr/include [python]     Python and headers of one version, 3.11 with Debian 12
set -euo pipefail

headers=$(realpath "$1")
python=${2:-python3}
version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
[ -e "$headers/python$version/Python.h" ] || {
  echo "$headers has no python$version/Python.h: take the headers of the Python that builds" >&2
  exit 1
}
suffix=.cpython-${version/./}-aarch64-linux-gnu.so
export _PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=$suffix
export CMAKE_ARGS="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS=-isystem$headers \
-DPython_INCLUDE_DIR=$headers/python$version -DNB_SUFFIX=$suffix"
exec "$(dirname "$0")/build_wheels.sh" "$python"
