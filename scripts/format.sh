#!/bin/bash
# Formats every source with clang-format-19, or with --check names those that need it and fails.
# The version matters: each one breaks lines a little differently.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v clang-format-19 >/dev/null; then
  echo "format: SKIPPED, no clang-format-19 on this machine"
  exit 0
fi
if [[ ${1:-} == --check ]]; then
  if ! scripts/sources.sh | xargs clang-format-19 --dry-run -Werror; then
    echo "format: run 'make format'" >&2
    exit 1
  fi
  echo "format: $(scripts/sources.sh | wc -l) files as clang-format-19 wants them"
else
  scripts/sources.sh | xargs clang-format-19 -i
fi
