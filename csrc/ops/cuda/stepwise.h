// Step-wise driver of a call: its memory, its products and its launches.
#pragma once

#include "ops/cuda/device.h"

namespace fastrnn::cuda {

void run_stepwise(const Call& call, ForwardArgs args, const Tensor& w_hh, const OptionalTensor& w_hr);
void run_stepwise(const Call& call, BackwardArgs args, const Tensor& w_hh, const OptionalTensor& w_hr);

}  // namespace fastrnn::cuda
