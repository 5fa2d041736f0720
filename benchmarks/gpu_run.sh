#!/usr/bin/env bash
# gpu_run.sh A|B [--rehearse]: all checks and timings that need a GPU, from a checkout and without network, in two calls.
#
#   A   at most six minutes: facts, barriers, parity of the three drivers, times of whole calls beside cuDNN, a profile,
#       the GPU's tests
#   B   at most five: parity again, random shapes, compute-sanitizer, the benchmark on the GPU, the benchmark's quick rows
#       on the CPU
#
# Every step is a process with its own time limit and log, written line by line, so that a hang or a crash affects neither
# other steps nor the output so far. Built libraries are taken from build/gpu-prebuilt, which benchmarks/gpu_prebuild.sh
# makes for the machine's Python and torch; if they cannot be imported, they are built in parallel to the steps that do
# not need them.
#
#   --rehearse   without a GPU: the same steps with small sizes on the CPU; those that need a GPU are only listed
#   OUT          folder for the logs, default build/gpu-run-A or -B
#   PYTHON       default python3: one with torch's CUDA build, numpy and rich; pytest for the tests
#   GPU_RUN_SECONDS   for all steps, default 345 for A and 285 for B
#   GPU_RUN_STEPS     a file of steps instead of those below: name, seconds, kernels or -, command, with tabs in between
set -uo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

call=${1:-}
[[ $call == A || $call == B ]] || { echo "usage: benchmarks/gpu_run.sh A|B [--rehearse]" >&2 && exit 2; }
rehearse=${2:-}
[[ -z $rehearse || $rehearse == --rehearse ]] || { echo "gpu_run.sh: expected --rehearse, got $rehearse" >&2 && exit 2; }
export PYTHON=${PYTHON:-python3} OUT=${OUT:-build/gpu-run-$call}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PREBUILT=${PREBUILT:-build/gpu-prebuilt}
rm -rf "$OUT" && mkdir -p "$OUT"
OUT=$(realpath "$OUT")
total=${GPU_RUN_SECONDS:-$([[ $call == A ]] && echo 345 || echo 285)}
failed=0
builder=
if [[ -n $rehearse ]]; then
  export DEVICE=cpu PYTEST=--collect-only LIST=--list
else
  export DEVICE=cuda PYTEST= LIST=
fi

steps_of_A() {
  printf '%s\t%s\t%s\t%s\n' \
    facts 20 - 'nvidia-smi; nproc; "$PYTHON" -c "import torch; print(torch.__version__, torch.cuda.is_available())"' \
    barriers 40 - 'barriers' \
    info 20 kernels '"$PYTHON" -m fastrnn info' \
    smoke 60 kernels '"$PYTHON" benchmarks/gpu_smoke.py --device $DEVICE' \
    times 110 kernels '"$PYTHON" benchmarks/gpu_times.py --device $DEVICE --out "$OUT/times.jsonl"' \
    profile 25 kernels '"$PYTHON" benchmarks/gpu_times.py --device $DEVICE --profile' \
    tests 90 kernels 'gpu_tests'
}

steps_of_B() {
  printf '%s\t%s\t%s\t%s\n' \
    smoke 45 kernels '"$PYTHON" benchmarks/gpu_smoke.py --device $DEVICE' \
    random 50 kernels '"$PYTHON" benchmarks/gpu_smoke.py --device $DEVICE --random 1000 --seconds 45' \
    memcheck 45 kernels 'sanitizer memcheck' \
    racecheck 45 kernels 'sanitizer racecheck' \
    bench 60 kernels '"$PYTHON" -m fastrnn bench --device cuda --quick $LIST --out "$OUT/bench" --json "$OUT/bench.json"' \
    cpu 80 kernels '"$PYTHON" -m fastrnn bench --quick --no-lm $LIST --out "$OUT/cpu" --json "$OUT/cpu.json"'
}

# A step that is skipped ends with status 77 and prints the reason on its last line.
barriers() {
  local home program=$PREBUILT/gpu_barriers
  if [[ ! -x $program ]]; then
    home=$("$PYTHON" tools/cuda_checks.py) || exit 77
    program=build/gpu_barriers
    "$home/bin/nvcc" -O3 -std=c++17 -arch=sm_90a -Icsrc -DFASTRNN_ISA_CUDA=1 -DFASTRNN_ISA_NAME=cuda \
      benchmarks/gpu_barriers.cu -o "$program" || return 1
  fi
  [[ $DEVICE == cpu ]] && echo "the barriers are built; there is no GPU to time them on" && exit 77
  "$program" && "$program" --json >"$OUT/barriers.json"
}

gpu_tests() {
  "$PYTHON" -c 'import pytest' || exit 77
  # shellcheck disable=SC2046
  "$PYTHON" -m pytest -q -p no:cacheprovider $PYTEST \
    $(grep -rlE --include='test_cuda*.py' 'needs_gpu|needs a GPU' tests | grep -v test_cuda_cells)
}

sanitizer() {
  local home program
  home=$("$PYTHON" tools/cuda_checks.py)
  program=$(PATH=$PATH:$home/bin:$home/compute-sanitizer command -v compute-sanitizer) ||
    { echo "there is no compute-sanitizer" && exit 77; }
  [[ $DEVICE == cpu ]] && echo "there is no GPU for $program" && exit 77
  # Without torch's cache, each tensor is an allocation with checked bounds; torch's own kernels are not checked.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$program" --tool "$1" --error-exitcode 9 --kernel-name kns=_entry \
    "$PYTHON" benchmarks/gpu_sanitize.py
}
export -f barriers gpu_tests sanitizer

# Tests whether the kernels can be imported; on a GPU, those of CUDA too.
importable() {
  timeout 60 "$PYTHON" -c "import fastrnn, sys; '$DEVICE' == 'cpu' or __import__('fastrnn._cuda')" >"$OUT/import.log" 2>&1
}

# Uses the built libraries, or starts a build in parallel to the steps.
prepare() {
  cp -r "$PREBUILT"/*.so "$PREBUILT"/_lib fastrnn/ 2>/dev/null
  importable && return
  echo "the built libraries cannot be imported ($(tail -n 1 "$OUT/import.log")); they are built anew"
  (
    if ! command -v ninja && ! "$PYTHON" -c 'import ninja'; then
      mkdir -p build/bin
      printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$(command -v "$PYTHON")" "$PWD/benchmarks/plain_ninja.py" >build/bin/ninja
      chmod +x build/bin/ninja
      export PATH=$PWD/build/bin:$PATH
    fi
    TORCH_CUDA_ARCH_LIST=9.0a FASTRNN_BUILD_CUDA=auto timeout 300 ${GPU_RUN_BUILD:-"$PYTHON" setup.py build_ext --inplace}
  ) >"$OUT/build.log" 2>&1 &
  builder=$!
}

# Waits for the build while time for a step after it remains.
kernels_ready() {
  while [[ -n $builder ]] && kill -0 "$builder" 2>/dev/null; do
    ((SECONDS + 20 > total)) && return 1
    sleep 0.5
  done
  builder=
  importable
}

# run NAME SECONDS COMMAND: runs a command and records its status. Does not wait for a process that cannot be killed.
run() {
  local pid end=$((SECONDS + $2 + 8))
  timeout --kill-after 4 "$2" bash -o pipefail -c "$3" >"$OUT/$1.log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    ((SECONDS > end)) && status=137 && return
    sleep 0.1
  done
  wait "$pid"
  status=$?
}

# step NAME SECONDS NEEDS COMMAND
step() {
  local limit=$2 began=$SECONDS left=$((total - SECONDS)) status result
  if [[ $3 == kernels ]] && ! kernels_ready; then
    result="FAILED: no kernels: $(tail -n 1 "$OUT/import.log")"
  else
    left=$((total - SECONDS))
    ((limit > left)) && limit=$left
    if ((limit < 3)); then
      result="NO TIME"
    else
      printf '%s\tstarted\n' "$1" >>"$OUT/steps.tsv"
      run "$1" "$limit" "$4"
      case $status in
        0) result=passed ;;
        77) result="left out: $(tail -n 1 "$OUT/$1.log")" ;;
        124 | 137) result="OUT OF TIME after $limit s" ;;
        *) result="FAILED with status $status" ;;
      esac
    fi
  fi
  case $result in passed | left*) ;; *) failed=1 ;; esac
  printf '%s\t%s\t%s s\n' "$1" "$result" $((SECONDS - began)) | tee -a "$OUT/steps.tsv"
  [[ $result == passed && $1 != times ]] || tail -n 12 "$OUT/$1.log" 2>/dev/null | cut -c 1-160
}

prepare
while IFS=$'\t' read -r name seconds needs command <&3; do
  step "$name" "$seconds" "$needs" "$command"
done 3< <(if [[ -n ${GPU_RUN_STEPS:-} ]]; then cat "$GPU_RUN_STEPS"; else "steps_of_$call"; fi)
if [[ -n $builder ]]; then kill "$builder" 2>/dev/null; fi
exit $failed
