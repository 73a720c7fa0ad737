#!/bin/bash
# Runs a test program as several MPI processes; exit status 77 where there is no Open MPI.
#
#   scripts/mpi_test.sh N PROGRAM [ARGUMENT]...
set -euo pipefail

n=$1
shift
if ! command -v mpirun >/dev/null || ! mpirun --version 2>/dev/null | grep -q "Open MPI"; then
  echo "mpi_test: no mpirun of Open MPI here; skipped"
  exit 77
fi
flags=(--oversubscribe --bind-to none
  # Ranks that wait leave the cores to those that work.
  --mca mpi_yield_when_idle 1
  # Containers forbid reading another process's memory.
  --mca btl self,vader,tcp --mca btl_vader_single_copy_mechanism none)
if ((EUID == 0)); then flags+=(--allow-run-as-root); fi
exec mpirun "${flags[@]}" -n "$n" "$@"
