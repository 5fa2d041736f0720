// A custom cell on GPUs as a shared object: its kernels for the requested dtypes, compiled by nvcc, and the table that
// load_cell() reads. The build writes
//   #define FASTRNN_ISA_CUDA 1 / FASTRNN_ISA_NAME cuda / FASTRNN_CELL_HEADER "cell.h" / FASTRNN_CELL_NAME my_cell
//   #define FASTRNN_FORMATS …, a bit for each Format
// and includes this file in one source.
#pragma once

#if defined(FASTRNN_CUDA_EMULATED)
#include "launcher.h"
#else
#include "cuda/launch.h"
#endif
#include FASTRNN_CELL_HEADER

#define FASTRNN_TEXT_(a) #a
#define FASTRNN_TEXT(a) FASTRNN_TEXT_(a)

extern "C" {
__attribute__((visibility("default"))) extern const int64_t fastrnn_cuda_cell_interface;
__attribute__((visibility("default"))) const fastrnn::cuda::CellKernels* fastrnn_cuda_cell();
const int64_t fastrnn_cuda_cell_interface = fastrnn::cuda::kCellInterface;

const fastrnn::cuda::CellKernels* fastrnn_cuda_cell() {
  using namespace fastrnn::cuda;
#if defined(FASTRNN_CUDA_EMULATED)
  using Launcher = fastrnn::emulator::Launcher;
#else
  using Launcher = GpuLauncher;
#endif
  static const CellKernels kernels =
      cell_table<Launcher, FASTRNN_CELL_NAME, FASTRNN_FORMATS>(FASTRNN_TEXT(FASTRNN_CELL_NAME));
  return &kernels;
}
}
