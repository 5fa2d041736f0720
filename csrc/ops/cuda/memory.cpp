#include "ops/cuda/memory.h"

#include <atomic>

namespace fastrnn::cuda {

namespace {

std::atomic<bool> poison{false};

}  // namespace

Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor t = at::empty(sizes, options);
  if (poison && t.numel() > 0) t.view({-1}).view(at::kByte).fill_(0xff);
  return t;
}

void set_poison(bool on) { poison = on; }

}  // namespace fastrnn::cuda
