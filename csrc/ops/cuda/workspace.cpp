#include "ops/cuda/workspace.h"

namespace fastrnn::cuda {

Workspace::Workspace(const Call& call, bool backward, const Tensor& first, const OptionalTensor& second) {
  const int64_t B = call.layout.batch, H = call.hidden, P = call.projected, RH = call.first_width();
  const auto wide = call.options.dtype(call.compute_type());
  operand = fresh({B, backward ? RH : P}, call.options);
  if (RH > 0) {
    product = fresh({B, backward ? P : RH}, wide);
    library.recurrent_product = StepProduct(product, operand, first);
  }
  if (second) {
    const int64_t W = backward ? second->size(0) : second->size(1);
    inner = fresh({B, backward ? W : H}, call.options);
    outer = fresh({B, backward ? H : W}, wide);
    library.projection_product = StepProduct(outer, inner, *second);
  }
  for (int s = 0; s < call.cell->states; ++s) states.push_back(fresh({B, call.width(s)}, wide));
}

StepMemory Workspace::pointers() const {
  StepMemory p{writable(product), writable(operand), writable(inner), writable(outer), {}};
  for (size_t s = 0; s < states.size(); ++s) p.states[s] = writable(states[s]);
  return p;
}

}  // namespace fastrnn::cuda
