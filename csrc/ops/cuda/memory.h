// Memory of the kernels. All of it comes from torch's caching allocator.
#pragma once

#include <ATen/ATen.h>

#include "ops/tensors.h"

namespace fastrnn::cuda {

// Not initialised; with poison on filled with NaN.
Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options);

// Fill what kernels write, and their scratch memory, with NaN first (tests).
void set_poison(bool on);

// In the emulated build of tests/cuda_ops the CPU passes for a GPU.
inline bool on_gpu(const Tensor& t) {
#ifdef FASTRNN_CUDA_EMULATED
  return t.is_cpu();
#else
  return t.is_cuda();
#endif
}

}  // namespace fastrnn::cuda
