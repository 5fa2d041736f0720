#!/usr/bin/env bash
# Compiles the kernels for 64-bit ARM and runs tests/native/check_kernels.cpp on them in an emulator.
#
# Needs a cross-compiler and QEMU, two packages of Debian and Ubuntu, which it installs itself when run as root. Where it
# cannot, it prints the reason and fails; with CI=true it passes, because no change to the repository can fix that.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES="g++-aarch64-linux-gnu qemu-user-static"
CXX=aarch64-linux-gnu-g++
OUT=build/arm

not_checked() {
  echo "fastrnn: ARM was NOT checked: $1" >&2
  [[ ${CI:-} == true ]] && exit 0
  exit 1
}

find_emulator() {
  command -v qemu-aarch64-static || command -v qemu-aarch64
}

install_packages() {
  command -v apt-get >/dev/null || not_checked "it needs $CXX and qemu-aarch64 on PATH"
  ((EUID == 0)) || not_checked "it needs two packages: sudo apt-get install $PACKAGES"
  local log
  log=$(mktemp)
  # The present package lists may suffice, and new ones may be unavailable.
  if ! { install_quietly || { apt-get update && install_quietly; }; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    not_checked "apt-get could not install $PACKAGES"
  fi
  rm -f "$log"
}

install_quietly() {
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $PACKAGES
}

if [[ $(uname -m) == aarch64 ]]; then
  echo "This is an ARM machine: tests/kernels/test_native.py checks its kernels"
  exit 0
fi
if ! command -v "$CXX" >/dev/null || ! find_emulator >/dev/null; then
  install_packages
fi
emulator=$(find_emulator)

mkdir -p "$OUT"
rm -f "$OUT"/*.o
# The flags of setup.py, but -O2 for -O3: half the time to compile.
flags=(-O2 -std=c++20 -Icsrc -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp)
{
  python3 tools/generate_units.py "$OUT/units" --arch aarch64
  ls csrc/cpu/*.cpp tests/native/check_kernels.cpp
} | xargs -P 2 -I{} sh -c '"$@" -c "{}" -o "$0/$(basename "{}" .cpp).o"' "$OUT" "$CXX" "${flags[@]}"
# Linked statically, so that the emulator needs no libraries of an ARM system.
if ! "$CXX" "${flags[@]}" -static "$OUT"/*.o -o "$OUT/check_kernels" 2>"$OUT/link.log"; then
  cat "$OUT/link.log" >&2  # only on failure, because libgomp always warns of static linking
  exit 1
fi
echo "$("$CXX" --version | head -n 1), $("$emulator" --version | head -n 1)"
"$emulator" "$OUT/check_kernels" --quick
