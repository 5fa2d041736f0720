#include "cuda/drivers.h"

namespace fastrnn::cuda {

namespace {

template <class Args>
Error launch(const StepKernel<Args>& kernel, const Args& args, const Args* device, const Position& position,
             Stream stream) {
  return device != nullptr ? kernel.launch_at(device, args, position, stream) : kernel.launch(args, position, stream);
}

}  // namespace

bool wants_initial(const BackwardArgs& args) {
  for (void* grad : args.grad_initial) {
    if (grad != nullptr) return true;
  }
  return false;
}

Error forward_step(const FormatKernels& kernels, const ForwardArgs& args, const ForwardArgs* device,
                   const Position& position, int64_t rows, Library& library, Stream stream) {
  if (args.memory.product != nullptr) library.recurrent(rows);
  Error error = launch(kernels.step, args, device, position, stream);
  if (error != 0 || args.memory.inner == nullptr) return error;
  library.projection(rows);
  return launch(kernels.project, args, device, position, stream);
}

Error backward_step(const FormatKernels& kernels, const BackwardArgs& args, const BackwardArgs* device,
                    const Position& position, int64_t rows, Library& library, Stream stream) {
  Error error = 0;
  if (args.memory.inner != nullptr) {
    error = launch(kernels.project_backward, args, device, position, stream);
    if (error != 0) return error;
    library.projection(rows);
  }
  error = launch(kernels.step_backward, args, device, position, stream);
  if (error == 0 && args.memory.product != nullptr) library.recurrent(rows);
  return error;
}

Error stepwise_forward(const FormatKernels& kernels, const ForwardArgs& args, const Counts& counts, Library& library,
                       Stream stream) {
  if (kernels.whole.launch != nullptr) return kernels.whole.launch(args, {}, stream);
  Error error = kernels.begin.launch(args, {}, stream);
  for (int64_t k = 0; k < args.rows.steps && error == 0; ++k) {
    error = forward_step(kernels, args, nullptr, {k, nullptr}, counts.at(args.rows.step(k)), library, stream);
  }
  return error;
}

Error stepwise_backward(const FormatKernels& kernels, const BackwardArgs& args, const Counts& counts, Library& library,
                        Stream stream) {
  if (kernels.whole_backward.launch != nullptr) return kernels.whole_backward.launch(args, {}, stream);
  const int64_t steps = args.rows.steps;
  Error error = kernels.begin_backward.launch(args, {}, stream);
  for (int64_t undone = 0; undone < steps && error == 0; ++undone) {
    // All rows: those that take no part have a gradient of zero, and must not find an old product.
    error = backward_step(kernels, args, nullptr, {undone, nullptr}, counts.batch, library, stream);
  }
  if (error == 0 && wants_initial(args)) error = kernels.initial.launch(args, {}, stream);
  return error;
}

}  // namespace fastrnn::cuda
