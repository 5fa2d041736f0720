// Memory of the step-wise driver, and its products in it.
#pragma once

#include "ops/cuda/device.h"
#include "ops/cuda/products.h"

namespace fastrnn::cuda {

struct Workspace {
  Tensor product, operand, inner, outer;
  Tensors states;
  StepLibrary library;

  // `first`, `second`: the matrices of the pass, as the products take them
  Workspace(const Call& call, bool backward, const Tensor& first, const OptionalTensor& second);
  StepMemory pointers() const;
};

}  // namespace fastrnn::cuda
