#!/bin/bash
# The whole test suite, as CI runs it: installs what is missing, checks the format, builds the
# release and the sanitizer build with warnings as errors, then runs both builds' tests in one
# ctest, whose summary is the last thing printed.
#
#   scripts/test.sh [CTEST ARGUMENT]...     e.g. scripts/test.sh -R arrows
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (at %d s)\n' "$1" "$SECONDS"; }

step "dependencies"
scripts/install_dependencies.sh test

step "format"
scripts/format.sh --check

for preset in cpu asan; do
  step "build: $preset"
  cmake --preset "$preset" | tail -n 1
  cmake --build --preset "$preset"
done

# ctest reads this file as it reads one that CMake generates. The sanitizer build's tests carry its
# prefix, so no name occurs twice.
mkdir -p build/all
printf 'subdirs("%s" "%s")\n' "$PWD/build" "$PWD/build-asan" >build/all/CTestTestfile.cmake

step "tests"
exec ctest --test-dir build/all --output-on-failure --no-tests=error --parallel "$(nproc)" "$@"
