#include "ops/cuda/stepwise.h"

#include <c10/cuda/CUDAStream.h>

#include <type_traits>

#include "ops/cuda/choice.h"
#include "ops/cuda/errors.h"
#include "ops/cuda/workspace.h"

namespace fastrnn::cuda {

namespace {

Counts counts_of(const CudaLayout& layout) {
  return {layout.counts.empty() ? nullptr : layout.counts.data(), layout.batch};
}

// The matrix of a step's second product, if any: that of a projection, or the cell's own.
OptionalTensor second_matrix(const Call& call, const Tensor& w_hh, const OptionalTensor& w_hr) {
  return call.cell->second > 0 ? OptionalTensor(call.second_product(w_hh)) : w_hr;
}

Stream stream_of(const Call& call) { return c10::cuda::getCurrentCUDAStream(call.device.index()).stream(); }

Error launch(const Call& call, const ForwardArgs& args, Library& library) {
  return stepwise_forward(*call.kernels, args, counts_of(call.layout), library, stream_of(call));
}
Error launch(const Call& call, const BackwardArgs& args, Library& library) {
  return stepwise_backward(*call.kernels, args, counts_of(call.layout), library, stream_of(call));
}

template <class Args>
void run(const Call& call, Args& args, const Tensor& first, const OptionalTensor& second) {
  Workspace workspace(call, std::is_same_v<Args, BackwardArgs>, first, second);
  args.memory = workspace.pointers();
  check(launch(call, args, workspace.library), driver_name(Driver::kStepwise));
  count_run(Driver::kStepwise);
}

}  // namespace

void run_stepwise(const Call& call, ForwardArgs args, const Tensor& w_hh, const OptionalTensor& w_hr) {
  const OptionalTensor second = second_matrix(call, w_hh, w_hr);
  run(call, args, call.first_product(w_hh).t(), second ? OptionalTensor(second->t()) : second);
}

void run_stepwise(const Call& call, BackwardArgs args, const Tensor& w_hh, const OptionalTensor& w_hr) {
  run(call, args, call.first_product(w_hh), second_matrix(call, w_hh, w_hr));
}

}  // namespace fastrnn::cuda
