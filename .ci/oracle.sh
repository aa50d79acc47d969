#!/usr/bin/env bash
# The tests that compare with ESPnet, in an environment that has it.
#
# Usage: .ci/oracle.sh [FOLDER [VENV]]
#
# Makes a virtual environment in FOLDER (default: build/espnet) that sees all of VENV (default:
# .venv, which `make setup` makes) and ESPnet beside it, and runs every test file that names an
# ESPnet module there. ESPnet's wheel asks for Python 3.12 and for far more than its modules import;
# it is unpacked as it is. What is there already is used again. Paths go from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ESPNET=espnet==202611
# What the modules under test import and VENV lacks; librosa is for the frontend alone.
IMPORTS=(typeguard==4.6.0 humanfriendly==10.0 torch-complex==0.4.4 librosa==0.11.0)

folder=${1:-build/espnet}
venv=${2:-.venv}
python=$folder/bin/python
ready=$folder/ready-$(printf '%s\n' "$ESPNET" "${IMPORTS[@]}" | cksum | cut -d' ' -f1)

if [[ ! -x $venv/bin/python ]]; then
  echo "$venv has no Python: run make setup first" >&2
  exit 1
fi

if [[ ! -f $ready ]]; then
  rm -rf "$folder/wheel" # of a run that broke off
  "$venv/bin/python" -m venv "$folder"
  site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  shared=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # addsitedir and not the bare path: it follows the .pth file of an editable install too.
  printf 'import site; site.addsitedir(r"%s")\n' "$shared" >"$site/shared.pth"
  # The constraints keep it from putting other versions in front of what VENV has.
  "$python" -m pip install --quiet --constraint constraints.txt "${IMPORTS[@]}"
  "$python" -m pip download --quiet --no-deps --python-version 3.12 --only-binary=:all: \
    --dest "$folder/wheel" "$ESPNET"
  "$python" -m zipfile --extract "$folder"/wheel/espnet-*.whl "$site"
  rm -r "$folder/wheel"
  touch "$ready"
fi

# Else every test below would skip in silence.
"$python" -c 'import espnet2.asr.espnet_model, espnet2.asr.frontend.default'

mapfile -t files < <(grep -rlE --include='test_*.py' '["'\'' ]espnet2?\.' tests | sort)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
OMP_NUM_THREADS=1 "$python" -m pytest -rs "${files[@]}" | tee "$log"
# ESPnet is here: a test that skips for want of it imports what is not, or no longer, there.
if sed -nE 's/^SKIPPED \[[0-9]+\] [^ ]+ //p' "$log" | grep -i espnet; then
  echo "skipped although ESPnet is installed: add what is missing to IMPORTS in $0" >&2
  exit 1
fi
