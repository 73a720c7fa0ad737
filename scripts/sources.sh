#!/bin/bash
# Prints every C++ source of the project, one a line.
set -euo pipefail
cd "$(dirname "$0")/.."
find src tests bench fuzz -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) |
  sort
