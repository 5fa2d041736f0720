#!/usr/bin/env bash
# check_cuda.sh VENV [PYTHON]: compiles the CUDA kernels for sm_80 and sm_90a against torch's CUDA build, links and loads
# them, and fails if a hot kernel spills registers or its step has grown; then the same for custom cells, without the
# check of the step. The host sources are also compiled against the oldest supported torch. Needs nvcc and no GPU;
# without nvcc it prints a note and passes.
#
# VENV is created if needed, and torch's CUDA build (several GB) installed there. TORCH selects another version.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
python=${2:-}
torch=${TORCH:-torch==2.14.1}
out=build/cuda-check
log=$out/build.log

tools/create_venv.sh "$venv" "$python"
py=$venv/bin/python
if ! reason=$("$py" tools/cuda_checks.py 2>&1 >/dev/null); then
  echo "The CUDA kernels were NOT checked: ${reason#fastrnn: }"
  exit 0
fi

if ! "$py" -c 'import ninja, numpy, setuptools, torch; assert torch.version.cuda' 2>/dev/null; then
  echo "Installing $torch with its CUDA libraries"
  "$py" -m pip install --quiet "$torch" 'setuptools>=77' ninja numpy
fi

"$py" tools/check_oldest_torch.py "$out"

# ptxas prints the registers of a kernel only when it compiles it.
mkdir -p "$out"
find build -path '*/units/cuda_*.o' -delete
export FASTRNN_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST='8.0;9.0a+PTX' NVCC_APPEND_FLAGS='-Xptxas -v'
echo "Building against $("$py" -c 'import torch; print("torch", torch.__version__)'), log in $log"
if ! "$py" setup.py build --build-lib "$out/lib" >"$log" 2>&1; then
  grep -E 'error:|fatal|^fastrnn: ' "$log" | head -n 20 >&2 || tail -n 20 "$log" >&2
  exit 1
fi
grep '^fastrnn: ' "$log"
"$py" tools/check_spills.py "$log" --architectures sm_80,sm_90a
"$py" tools/check_steps.py "$out"/lib/fastrnn/_cuda*.so

# Loading needs no GPU, and fails if a symbol is missing. Run in the folder, so that this build is the one imported.
py=$(realpath --no-symlinks "$py")
root=$PWD
cd "$out/lib"
"$py" - <<'END'
import torch
import fastrnn
import fastrnn._cuda

operators = ["sequence_forward", "layer_backward"]
has = torch._C._dispatch_has_kernel_for_dispatch_key
missing = [name for name in operators if not has(f"fastrnn::{name}", "CUDA")]
assert not missing, f"no CUDA kernel is registered for {missing}"
print(f"fastrnn {fastrnn.__version__} with CUDA kernels loads in torch {torch.__version__}")
END

# Custom cells compile with the headers in the package.
unset NVCC_APPEND_FLAGS
PYTHONPATH=$PWD "$py" "$root/tools/check_cuda_cells.py" "$root/tests/harness"
