#!/bin/bash
# The tests that are written in Python, with what they need from PyPI in a virtual environment that
# is made once and again whenever tests/requirements.txt changes.
#
#   scripts/python_tests.sh VENV_FOLDER PYTEST_ARGUMENT...
#   scripts/python_tests.sh build/venv tests/e2e --hadal build/hadal
#
# Exits with 77, which CTest calls skipped, where there is no python3-venv or no way to PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: scripts/python_tests.sh VENV_FOLDER PYTEST_ARGUMENT...}
shift
requirements=tests/requirements.txt

skip() {
  echo "python_tests: $1" >&2
  exit 77
}

command -v python3 >/dev/null || skip "there is no python3"
python3 -c 'import ensurepip, venv' 2>/dev/null || skip "python3 lacks venv: apt-get install python3-venv"

mkdir -p "$venv"
# CTest starts several of these at once; one makes the environment, the others wait for it.
exec 9>"$venv/.lock"
flock 9
if ! cmp -s "$requirements" "$venv/installed.txt"; then
  rm -f "$venv/installed.txt"
  python3 -m venv "$venv" || skip "python3 -m venv failed"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements" ||
    skip "pip could not install $requirements"
  cp "$requirements" "$venv/installed.txt"
fi
exec 9>&-
exec "$venv/bin/python" -B -m pytest -q -p no:cacheprovider "$@"
