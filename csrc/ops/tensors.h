// Conversion of tensors for the kernels.
#pragma once

#include "ops/aten.h"
#include "ops/call.h"

namespace fastrnn {

// The tensor with its values in memory; a tensor that stands for zeros is materialised. Products accept any strides.
Tensor present(const Tensor& t);
// The same, contiguous and with pending negations resolved.
Tensor dense(const Tensor& t);
inline Tensor dense_if(const Tensor& t) { return t.defined() ? dense(t) : t; }

inline const void* data_of(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
inline void* writable(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// The memory of a contiguous tensor with other sizes, without the dispatcher: invisible to autograd, for use inside an
// operator.
Tensor memory_of(const Tensor& t, at::IntArrayRef sizes);

}  // namespace fastrnn
