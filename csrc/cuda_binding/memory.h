// Memory of the kernels. All of it comes from torch's caching allocator.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace fastrnn::cuda {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

// Not initialised; with poison on filled with NaN.
Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options);

// Fill what kernels write, and their scratch memory, with NaN first (tests).
void set_poison(bool on);

// In the emulated build of tests/cuda_binding the CPU passes for a GPU.
inline bool on_gpu(const Tensor& t) {
#ifdef FASTRNN_CUDA_EMULATED
  return t.is_cpu();
#else
  return t.is_cuda();
#endif
}

// The tensor as a kernel may read it: its values in order, none of them waiting to be negated.
Tensor dense(const Tensor& t);
inline OptionalTensor dense(const OptionalTensor& t) { return t ? OptionalTensor(dense(*t)) : t; }

inline const void* data_of(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
inline const void* data_of(const OptionalTensor& t) { return t ? data_of(*t) : nullptr; }
inline void* writable(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

}  // namespace fastrnn::cuda
