// Output memory of the kernels, guarded in debugging.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace fastrnn {

// Allocates what a kernel writes. With poison on (cpu/workspace.h) it is filled with NaN, and sentinels behind each
// tensor are checked by verify().
class Buffers {
 public:
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
  // Raises if a kernel failed (its return code) or wrote past the end of a tensor.
  void verify(int code) const;

 private:
  std::vector<at::Tensor> guarded_;
};

}  // namespace fastrnn
