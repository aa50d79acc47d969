#!/usr/bin/env bash
# The tests that compare with k2, in a process of an environment that has it.
#
# Usage: .ci/k2.sh [FOLDER [VENV]]
#
# Makes a virtual environment of CPython 3.10 in FOLDER (default: build/k2) with k2 1.23.4 and torch
# 1.13.1, 3.5 GB, and runs tests/k2 with VENV (default: .venv), which asks that environment.
# PYTHON310 names the interpreter (default: python3.10). What is there already is used again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-build/k2}
venv=${2:-.venv}
base=${PYTHON310:-python3.10}
python=$folder/bin/python

if [[ ! -f $folder/ready ]]; then
  if ! "$base" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
    echo "$base is no Python 3.10, the only one that k2 1.23.4 has a wheel for: set PYTHON310" >&2
    exit 1
  fi
  "$base" -m venv "$folder"
  "$python" -m pip install --quiet torch==1.13.1 "numpy<2"
  # All its wheels say that they go with any Python, and pip takes the wrong one: name the file.
  wheel=$("$python" -m pip download --no-deps --no-cache-dir -vvv --dest "$folder/other" k2==1.23.4 2>&1 |
    grep -o 'http[^ ]*k2-1.23.4-py3.10-none-any.whl' | head -n 1)
  rm -rf "$folder/other"
  "$python" -m pip install --quiet --no-deps "$wheel"
  "$python" -c 'import k2'
  touch "$folder/ready"
fi
K2_PYTHON=$(realpath -s "$python") OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest tests/k2
