#!/usr/bin/env bash
# Installs a wheel into a fresh environment, on a path without a compiler, and runs the whole main job there.
#
#   scripts/try_wheel.sh WHEEL [python]     what it needs of PyPI is downloaded (PIP_EXTRA_INDEX_URL: see README)
#
# A pure Python wheel passes too, if it says what is missing; a platform's wheel must bring the engine.
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$1")
python=$(command -v "${2:-python3}")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place" # where no source of ours is importable
unset PYTHONPATH

"$python" -m venv env
env/bin/pip install --quiet --constraint "$repo/constraints.txt" "$wheel"
alone() { PATH=$place/env/bin "env/bin/$1" "${@:2}"; }
alone ssmquant demo --out demo
found=$(alone ssmquant inspect demo)
engine=${found#*engine: }
echo "engine: ${engine%%$'\n'*}"
case $wheel:$engine in
  *-none-any.whl:*"compiled extension is missing"*) ;;
  *-none-any.whl:*) echo "the wheel is pure Python, and nothing says so" >&2 && exit 1 ;;
  *:NativeEngine*) ;;
  *) echo "the wheel is of a platform, and its engine does not run" >&2 && exit 1 ;;
esac
