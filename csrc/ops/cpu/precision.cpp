#include "ops/cpu/precision.h"

#include <ATen/Context.h>

namespace fastrnn {

int parts_allowed() {
  const auto setting = [](at::Float32Op op) {
    return at::globalContext().float32Precision(at::Float32Backend::MKLDNN, op);
  };
  auto allowed = setting(at::Float32Op::RNN);
  if (allowed == at::Float32Precision::NONE || allowed == at::Float32Precision::DEFAULT) {
    allowed = setting(at::Float32Op::MATMUL);
  }
  return allowed == at::Float32Precision::TF32 ? 2 : (allowed == at::Float32Precision::BF16 ? 1 : 0);
}

}  // namespace fastrnn
