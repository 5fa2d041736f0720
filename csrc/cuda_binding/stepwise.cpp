#include "cuda_binding/stepwise.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda_binding/choice.h"
#include "cuda_binding/errors.h"
#include "cuda_binding/products.h"

namespace fastrnn::cuda {

namespace {

Counts counts_of(const Layout& layout) {
  return {layout.counts.empty() ? nullptr : layout.counts.data(), layout.batch};
}

Stream stream_of(const Call& call) { return c10::cuda::getCurrentCUDAStream(call.device.index()).stream(); }

// How the launches of a sequence reach the GPU: one by one. The only place to be changed for a captured graph of some
// steps that is launched again and again (forward_step and backward_step of cuda/drivers.h with a Position's counter).
Error launch(const Call& call, const ForwardArgs& args, Library& library) {
  return stepwise_forward(*call.kernels, args, counts_of(call.layout), library, stream_of(call));
}
Error launch(const Call& call, const BackwardArgs& args, Library& library) {
  return stepwise_backward(*call.kernels, args, counts_of(call.layout), library, stream_of(call));
}

// Tensors that StepMemory points into.
struct Memory {
  Tensor product, operand, inner, outer;
  Tensors states;

  // Widths: of the product and its operand, then of those of the projection.
  Memory(const Call& call, int64_t product_width, int64_t operand_width, int64_t inner_width, int64_t outer_width) {
    const int64_t B = call.layout.batch;
    const auto wide = call.options.dtype(call.compute_type());
    product = fresh({B, product_width}, wide);
    operand = fresh({B, operand_width}, call.options);
    if (call.projection) {
      inner = fresh({B, inner_width}, call.options);
      outer = fresh({B, outer_width}, wide);
    }
    for (int s = 0; s < call.cell->states; ++s) states.push_back(fresh({B, call.width(s)}, wide));
  }

  StepMemory pointers() const {
    StepMemory p{writable(product), writable(operand), writable(inner), writable(outer), {}};
    for (size_t s = 0; s < states.size(); ++s) p.states[s] = writable(states[s]);
    return p;
  }
};

template <class Args>
void run(const Call& call, Args& args, const Memory& memory, const Tensor& w_hh, const OptionalTensor& w_hr) {
  args.memory = memory.pointers();
  StepLibrary library;
  library.recurrent_product = StepProduct(memory.product, memory.operand, w_hh);
  if (w_hr) library.projection_product = StepProduct(memory.outer, memory.inner, *w_hr);
  check(launch(call, args, library), driver_name(Driver::kStepwise));
  count_run(Driver::kStepwise);
}

}  // namespace

void run_stepwise(const Call& call, ForwardArgs args, const Tensor& w_hh, const OptionalTensor& w_hr) {
  const Memory memory(call, call.gate_width(), call.projected, call.hidden, call.projected);
  run(call, args, memory, w_hh.t(), w_hr ? OptionalTensor(w_hr->t()) : w_hr);
}

void run_stepwise(const Call& call, BackwardArgs args, const Tensor& w_hh, const OptionalTensor& w_hr) {
  const Memory memory(call, call.projected, call.gate_width(), call.projected, call.hidden);
  run(call, args, memory, w_hh, w_hr);
}

}  // namespace fastrnn::cuda
