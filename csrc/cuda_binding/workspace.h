// Memory of the step-wise driver, and its products in it.
#pragma once

#include "cuda_binding/call.h"
#include "cuda_binding/products.h"

namespace fastrnn::cuda {

struct Workspace {
  Tensor product, operand, inner, outer;
  Tensors states;
  StepLibrary library;

  // `w_hh`, `w_hr`: the matrices as the products take them, of one pass.
  Workspace(const Call& call, bool backward, const Tensor& w_hh, const OptionalTensor& w_hr);
  StepMemory pointers() const;
};

}  // namespace fastrnn::cuda
