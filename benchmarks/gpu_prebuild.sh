#!/usr/bin/env bash
# gpu_prebuild.sh PYTHON [TORCH]: builds the libraries that benchmarks/gpu_run.sh carries to a machine with a GPU, into
# build/gpu-prebuilt: both extensions and the benchmark of barriers, for compute capability 9.0 alone. Needs nvcc, no GPU.
#
#   PYTHON   interpreter of the GPU machine's version, such as python3.12
#   TORCH    requirement of that machine's version, default torch==2.11.0; several GB, in a separate environment
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/gpu-venv
out=build/gpu-prebuilt
tools/create_venv.sh "$venv" "$1"
py=$venv/bin/python
"$py" -c 'import ninja, numpy, torch, setuptools; assert torch.version.cuda' 2>/dev/null ||
  "$py" -m pip install --quiet "${2:-torch==2.11.0}" 'setuptools>=77' ninja numpy rich

home=$("$py" tools/cuda_checks.py)
mkdir -p "$out"
rm -f "$out"/*
export FASTRNN_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0a
"$py" setup.py build --build-lib build/gpu-lib
cp -r build/gpu-lib/fastrnn/_lib build/gpu-lib/fastrnn/_cuda*.so "$out"
"$home/bin/nvcc" -O3 -std=c++17 -arch=sm_90a -Icsrc -DFASTRNN_ISA_CUDA=1 -DFASTRNN_ISA_NAME=cuda -cudart static \
  benchmarks/gpu_barriers.cu -o "$out/gpu_barriers"
strip --strip-unneeded "$out"/*.so "$out"/_lib/*.so
du -sh "$out"/*
