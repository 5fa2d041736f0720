#include "ops/cpu/precision.h"

#include <ATen/Context.h>

namespace fastrnn {

namespace {

// Return true if nothing is said for an operation. Torch before 2.13 has one value for that, later ones have two.
template <class Precision>
bool unset(Precision precision) {
  if constexpr (requires { Precision::DEFAULT; }) {
    return precision == Precision::NONE || precision == Precision::DEFAULT;
  } else {
    return precision == Precision::NONE;
  }
}

}  // namespace

int parts_allowed() {
  const auto setting = [](at::Float32Op op) {
    return at::globalContext().float32Precision(at::Float32Backend::MKLDNN, op);
  };
  auto allowed = setting(at::Float32Op::RNN);
  if (unset(allowed)) allowed = setting(at::Float32Op::MATMUL);
  return allowed == at::Float32Precision::TF32 ? 2 : (allowed == at::Float32Precision::BF16 ? 1 : 0);
}

}  // namespace fastrnn
