// Output memory of the kernels, with guards for debugging.
#pragma once

#include <vector>

#include "ops/aten.h"

namespace fastrnn {

// A tensor in new memory, in large pages if it is large.
at::Tensor new_tensor(at::IntArrayRef sizes, const at::TensorOptions& options);

// Allocates the kernels' outputs. With poison on (cpu/workspace.h) they are filled with NaN, and verify() checks
// sentinels after each tensor.
class Buffers {
 public:
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
  // Raises if a kernel failed (its return code) or wrote past the end of a tensor.
  void verify(int code) const;

 private:
  std::vector<at::Tensor> guarded_;
};

}  // namespace fastrnn
