#!/usr/bin/env bash
# gpu_check.sh: all that a GPU is needed for, from a bare checkout and without network, in under nine minutes.
#
# Builds the extension in place for the GPU at hand, times barriers, runs the GPU's tests, those of cells written in
# Python, compute-sanitizer on the hot kernels and the benchmark against torch.nn. A step that fails or runs out of time
# does not keep the others from running; the exit status says whether all passed.
#
#   OUT                 where the log, the JSON and the summary go, default build/gpu-check
#   PYTHON              default python3: one with torch's CUDA build, setuptools 77, numpy, rich and pytest
#   GPU_CHECK_SECONDS   for everything, default 520
#   GPU_CHECK_STEPS     which steps, default all: GPU_CHECK_STEPS='build barriers'
set -uo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

export PYTHON=${PYTHON:-python3}
export OUT=${OUT:-build/gpu-check}
mkdir -p "$OUT" build
OUT=$(realpath "$OUT")
total=${GPU_CHECK_SECONDS:-520}
wanted=" ${GPU_CHECK_STEPS:-build barriers tests cells sanitizer bench-float16 bench} "
rows=()
failed=0
said=build/gpu-check-step.log

# step NAME SECONDS SIGNAL FUNCTION: runs it within the time that is left. 77 means skipped, and the last line says why.
step() {
  local name=$1 limit=$2 signal=$3 began=$SECONDS left=$((total - SECONDS)) status result
  [[ $wanted == *" $name "* ]] || return 0
  ((limit > left)) && limit=$left
  if ((limit < 5)); then
    status=124 limit=0
    echo "no time was left" >"$said"
  else
    echo "=== $name, at most $limit s"
    # A function is known in another shell once it is exported. After the signal ten seconds to write what there is.
    timeout --signal "$signal" --kill-after 10 "$limit" bash -o pipefail -c "$4" >"$said" 2>&1
    status=$?
  fi
  { echo "=== $name" && cat "$said"; } >>"$OUT/gpu-check.log"
  case $status in
    0) result=passed ;;
    77) result="skipped: $(tail -n 1 "$said")" ;;
    124 | 137) result="OUT OF TIME" ;;
    *) result=FAILED ;;
  esac
  # A table may end early: it has written the rows that it had.
  if [[ $result == "OUT OF TIME" && -s $OUT/$name.json ]]; then
    result="cut short"
  elif [[ $result == FAILED || $result == "OUT OF TIME" ]]; then
    failed=1
    tail -n 25 "$said" | cut -c 1-200
  fi
  rows+=("| $name | $result | $((SECONDS - began)) s |")
}

# Compute capability 9.0 has instructions of its own under the name 9.0a.
capability() {
  "$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null | sed 's/^9\.0$/9.0a/'
}

build() {
  set -e
  if ! command -v ninja && ! "$PYTHON" -c 'import ninja'; then
    echo "no ninja: everything is compiled, by benchmarks/plain_ninja.py"
    mkdir -p build/bin
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$(command -v "$PYTHON")" "$PWD/benchmarks/plain_ninja.py" >build/bin/ninja
    chmod +x build/bin/ninja
    export PATH=$PWD/build/bin:$PATH
  fi
  nvidia-smi || true
  "$PYTHON" setup.py build_ext --inplace
  "$PYTHON" -m fastrnn info
}

barriers() {
  set -e
  local home
  home=$("$PYTHON" tools/cuda_checks.py)
  "$home/bin/nvcc" -O3 -std=c++17 -arch="sm_${TORCH_CUDA_ARCH_LIST/./}" -Icsrc -DFASTRNN_ISA_CUDA=1 \
    -DFASTRNN_ISA_NAME=cuda benchmarks/gpu_barriers.cu -o build/gpu_barriers
  build/gpu_barriers --json >build/barriers.json
  tee "$OUT/barriers.json" <build/barriers.json
}

# Those that need a GPU; without kernels that load they would all be skipped, and pass.
tests() {
  local files
  "$PYTHON" -c 'import fastrnn.cuda, sys; sys.exit(not fastrnn.cuda.is_available())' || {
    echo "the kernels cannot run here, see: $PYTHON -m fastrnn info"
    return 1
  }
  files=$(grep -rlE --include='test_cuda*.py' 'needs_gpu|needs a GPU' tests | grep -v test_cuda_cells)
  # shellcheck disable=SC2086
  "$PYTHON" -m pytest -q -p no:cacheprovider --durations=5 $files
}

# Cells written in Python, which nvcc compiles now; without it they would be skipped, and pass.
cells() {
  local home
  home=$("$PYTHON" tools/cuda_checks.py) || return 1
  CUDA_HOME=$home FASTRNN_CACHE=$PWD/build/gpu-cells "$PYTHON" -m pytest -q -p no:cacheprovider --durations=3 \
    tests/cuda/test_cuda_cells.py
}

sanitizer() {
  local tool program home only=() status=0
  home=$("$PYTHON" tools/cuda_checks.py)
  program=$(PATH=$PATH:$home/bin:$home/compute-sanitizer command -v compute-sanitizer) || {
    echo "there is no compute-sanitizer"
    return 77
  }
  # Without torch's cache each tensor has bounds of its own. The option that leaves torch's kernels out has two names.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in --kernel-name --kernel-regex; do
    if "$program" --help | grep -- "$tool" >/dev/null; then
      only=("$tool" kns=_entry)
      break
    fi
  done
  for tool in memcheck racecheck synccheck; do
    echo "--- $tool"
    timeout --kill-after 5 50 "$program" --tool "$tool" --error-exitcode 9 "${only[@]}" "$PYTHON" \
      benchmarks/gpu_sanitize.py || {
      echo "$tool: exit status $?"
      status=1
    }
  done
  return $status
}

# exec: the signal to stop must reach Python itself.
table() {
  exec "$PYTHON" -m fastrnn bench --device cuda --quick --out "build/$1" --json "$OUT/$1.json" "${@:2}"
}
table_float16() {
  table bench-float16 --cells lstm,rnn --shapes cuda-float16 --dtype float16
}
table_standard() {
  table bench --shapes cuda --dtype bfloat16,float32
}
export -f build barriers tests cells sanitizer table table_float16 table_standard

export TORCH_CUDA_ARCH_LIST
TORCH_CUDA_ARCH_LIST=$(capability)
if [[ -z $TORCH_CUDA_ARCH_LIST ]]; then
  echo "fastrnn: $PYTHON finds no GPU; what needs one will fail" >&2
  TORCH_CUDA_ARCH_LIST=9.0a
fi
export FASTRNN_BUILD_CUDA=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
rm -f "$OUT"/bench.json "$OUT"/bench-float16.json "$OUT"/barriers.json "$OUT"/gpu-check.log

step build 240 TERM build
step barriers 60 TERM barriers
step tests 150 TERM tests
step cells 90 TERM cells
step sanitizer 120 TERM sanitizer
step bench-float16 60 INT table_float16
step bench 240 INT table_standard
{
  printf '# GPU check, compute capability %s\n\n| | | |\n|---|---|---:|\n' "$TORCH_CUDA_ARCH_LIST"
  printf '%s\n' "${rows[@]}"
  "$PYTHON" benchmarks/gpu_summary.py "$OUT" || echo "- a row of the tables is wrong"
} | tee "$OUT/summary.md"
! grep -q '^- ' "$OUT/summary.md" && ((failed == 0))
