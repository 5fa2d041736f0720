// Memory of the kernels, all from torch's caching allocator.
#pragma once

#include "ops/aten.h"
#include "ops/tensors.h"

namespace fastrnn::cuda {

// Uninitialised; filled with NaN with poison on
Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options);

// Sets whether outputs and scratch memory of kernels are first filled with NaN (tests).
void set_poison(bool on);

// In the emulated build of tests/cuda_ops the CPU counts as a GPU.
inline bool on_gpu(const Tensor& t) {
#ifdef FASTRNN_CUDA_EMULATED
  return t.is_cpu();
#else
  return t.is_cuda();
#endif
}

}  // namespace fastrnn::cuda
