#include "cuda/drivers.h"

namespace fastrnn::cuda {

namespace {

bool wants_initial(const BackwardArgs& args) {
  for (void* grad : args.grad_initial) {
    if (grad != nullptr) return true;
  }
  return false;
}

Error forward_step(const FormatKernels& kernels, const ForwardArgs& args, int64_t k, int64_t rows, Library& library,
                   Stream stream) {
  if (args.memory.product != nullptr) library.recurrent(rows);
  Error error = kernels.step.launch(args, k, stream);
  if (error != 0 || args.memory.inner == nullptr) return error;
  library.projection(rows);
  return kernels.project.launch(args, k, stream);
}

Error backward_step(const FormatKernels& kernels, const BackwardArgs& args, int64_t undone, int64_t rows,
                    Library& library, Stream stream) {
  Error error = 0;
  if (args.memory.inner != nullptr) {
    error = kernels.project_backward.launch(args, undone, stream);
    if (error != 0) return error;
    library.projection(rows);
  }
  error = kernels.step_backward.launch(args, undone, stream);
  if (error == 0 && args.memory.product != nullptr) library.recurrent(rows);
  return error;
}

}  // namespace

Error stepwise_forward(const FormatKernels& kernels, const ForwardArgs& args, const Counts& counts, Library& library,
                       Stream stream) {
  if (kernels.whole.launch != nullptr) return kernels.whole.launch(args, 0, stream);
  Error error = kernels.begin.launch(args, 0, stream);
  for (int64_t k = 0; k < args.rows.steps && error == 0; ++k) {
    error = forward_step(kernels, args, k, counts.at(args.rows.step(k)), library, stream);
  }
  return error;
}

Error stepwise_backward(const FormatKernels& kernels, const BackwardArgs& args, const Counts& counts, Library& library,
                        Stream stream) {
  if (kernels.whole_backward.launch != nullptr) return kernels.whole_backward.launch(args, 0, stream);
  Error error = kernels.begin_backward.launch(args, 0, stream);
  for (int64_t undone = 0; undone < args.rows.steps && error == 0; ++undone) {
    // All rows: inactive ones have zero gradient, and must not use an old product.
    error = backward_step(kernels, args, undone, counts.batch, library, stream);
  }
  if (error == 0 && wants_initial(args)) error = kernels.initial.launch(args, 0, stream);
  return error;
}

}  // namespace fastrnn::cuda
