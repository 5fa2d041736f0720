// Tensors as kernels read and write them.
#pragma once

#include <ATen/ATen.h>

#include "ops/call.h"

namespace fastrnn {

// The values in memory: of a tensor that stands for zeros, zeros. Strides stay, products take them.
Tensor present(const Tensor& t);
// The same contiguous, and none of the values waiting to be negated.
Tensor dense(const Tensor& t);
inline Tensor dense_if(const Tensor& t) { return t.defined() ? dense(t) : t; }

inline const void* data_of(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
inline void* writable(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// The memory of a contiguous tensor under other sizes, without a call of torch's dispatcher: unknown to autograd, for
// use inside an operator.
Tensor memory_of(const Tensor& t, at::IntArrayRef sizes);

}  // namespace fastrnn
