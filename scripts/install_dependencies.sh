#!/bin/bash
# Installs the Debian and Ubuntu packages that hadal needs and this machine lacks.
#
#   scripts/install_dependencies.sh build   what `hadal` itself is built from
#   scripts/install_dependencies.sh test    the above, and what the test suite and the format check use
#   scripts/install_dependencies.sh tidy    the above, and clang-tidy
#
# Debian 12 and Ubuntu 24.04 have all of them. When nothing is missing, apt is not run.
set -euo pipefail

what=${1:-build}
packages=(g++ cmake ninja-build pkg-config libfmt-dev nlohmann-json3-dev libhwy-dev libpcre2-dev
  libedit-dev libcli11-dev libssl-dev libzstd-dev libtomlplusplus-dev libdnnl-dev)
# Beast needs Boost 1.81: Debian 12 has it beside its default, Ubuntu 24.04 has 1.83 as its default.
if apt-cache show libboost1.81-dev >/dev/null 2>&1; then
  packages+=(libboost1.81-dev)
else
  packages+=(libboost-dev)
fi
# Nice to have: a release without them builds and tests all the same, and says what was left out.
optional=()
case $what in
  build) ;;
  test | tidy)
    packages+=(libgtest-dev libgmock-dev libbenchmark-dev ccache python3-venv)
    # Ubuntu's chromium is a snap, which a container cannot run; the page's tests are skipped there.
    optional+=(clang-format-19 chromium chromium-driver)
    # Without MPI, training has one process and its tests of several are skipped.
    optional+=(libopenmpi-dev openmpi-bin)
    if [[ $what == tidy ]]; then packages+=(clang-tidy-19); fi
    ;;
  *)
    echo "install_dependencies: unknown set '$what'; wanted build, test or tidy" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "dependencies: no apt here, so nothing is installed; Debian calls them ${packages[*]}"
  exit 0
fi

is_installed() {
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

missing=()
for package in "${packages[@]}" "${optional[@]}"; do
  if ! is_installed "$package"; then missing+=("$package"); fi
done
if ((${#missing[@]} == 0)); then
  echo "dependencies: all present"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
  elif command -v sudo >/dev/null && [[ -t 0 && -z ${CI:-} ]]; then
    as_root=(sudo) # may ask for a password: someone is there to type it
  else
    echo "dependencies: missing ${missing[*]}; installing them needs root. Run as root:" >&2
    echo "  apt-get update && apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi

# `env`, since sudo drops the caller's environment.
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null
}

echo "dependencies: missing ${missing[*]}"
echo "dependencies: apt-get update"
apt update

wanted=()
for package in "${missing[@]}"; do
  if apt-cache show "$package" >/dev/null 2>&1; then
    wanted+=("$package")
  elif [[ " ${optional[*]} " == *" $package "* ]]; then
    echo "dependencies: this release has no $package; what uses it is left out"
  else
    echo "dependencies: this release has no $package; hadal is known to build on Debian 12 and" \
      "Ubuntu 24.04" >&2
    exit 1
  fi
done
if ((${#wanted[@]} > 0)); then
  echo "dependencies: apt-get install ${wanted[*]}"
  apt install -y --no-install-recommends "${wanted[@]}" >/dev/null
fi
echo "dependencies: installed"
