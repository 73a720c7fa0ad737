#!/bin/bash
# Builds and runs the tests that need a GPU (CTest label cuda).
#
#   scripts/gpu_tests.sh                run them all
#   scripts/gpu_tests.sh --sanitize     a small suite under compute-sanitizer's memcheck and racecheck
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --list-gpus | grep -q GPU; then
  echo "gpu_tests: this machine has no NVIDIA GPU, or its driver is not loaded" >&2
  exit 1
fi
test -f build/build.ninja || cmake --preset cpu
if ! grep -q 'CMAKE_CUDA_COMPILER:' build/CMakeCache.txt; then
  echo "gpu_tests: build/ was configured without CUDA; install CUDA 13.0, remove build/ and try again" >&2
  exit 1
fi
cmake --build build --target hadal_cuda_test

if [[ ${1:-} == --sanitize ]]; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 build/tests/hadal_cuda_test \
      --gtest_filter='CudaKvRows*:CudaElementwise*:CudaRmsNorm*:CudaCompress*:CudaMoeRoute*:CudaEmbed*'
  done
else
  exec ctest --test-dir build --label-regex '^cuda$' --output-on-failure --no-tests=error
fi
