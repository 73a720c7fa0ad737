#!/bin/bash
# Runs clang-tidy-19 on every file of src/ (or on those given) and fails on any finding.
#
#   scripts/tidy.sh [FILE.cpp]...
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_dependencies.sh tidy
test -f build/compile_commands.json || cmake --preset cpu >/dev/null

files=("$@")
if ((${#files[@]} == 0)); then mapfile -t files < <(scripts/sources.sh | grep '^src/.*\.cpp$'); fi
printf '%s\0' "${files[@]}" |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy-19 -p build --quiet --warnings-as-errors='*'
echo "tidy: ${#files[@]} files clean"
