// One cell's kernels on a GPU: the whole of a translation unit for nvcc. The build writes a source for each cell
//   #define FASTRNN_ISA_CUDA 1 / FASTRNN_ISA_NAME cuda / FASTRNN_CELL_HEADER "cells/lstm.h" / FASTRNN_CELL_NAME lstm
// and includes this file.
#pragma once

#include "cuda/launch.h"
#include FASTRNN_CELL_HEADER

#define FASTRNN_JOIN_(a, b) a##b
#define FASTRNN_JOIN(a, b) FASTRNN_JOIN_(a, b)
#define FASTRNN_TEXT_(a) #a
#define FASTRNN_TEXT(a) FASTRNN_TEXT_(a)

namespace fastrnn::cuda {

const CellKernels* FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)() {
  static const CellKernels kernels = cell_table<GpuLauncher, FASTRNN_CELL_NAME>(FASTRNN_TEXT(FASTRNN_CELL_NAME));
  return &kernels;
}

}  // namespace fastrnn::cuda
