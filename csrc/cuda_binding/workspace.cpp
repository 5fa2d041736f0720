#include "cuda_binding/workspace.h"

namespace fastrnn::cuda {

Workspace::Workspace(const Call& call, bool backward, const Tensor& w_hh, const OptionalTensor& w_hr) {
  const int64_t B = call.layout.batch, H = call.hidden, P = call.projected, GH = call.gate_width();
  const auto wide = call.options.dtype(call.compute_type());
  product = fresh({B, backward ? P : GH}, wide);
  operand = fresh({B, backward ? GH : P}, call.options);
  library.recurrent_product = StepProduct(product, operand, w_hh);
  if (w_hr) {
    inner = fresh({B, backward ? P : H}, call.options);
    outer = fresh({B, backward ? H : P}, wide);
    library.projection_product = StepProduct(outer, inner, *w_hr);
  }
  for (int s = 0; s < call.cell->states; ++s) states.push_back(fresh({B, call.width(s)}, wide));
}

StepMemory Workspace::pointers() const {
  StepMemory p{writable(product), writable(operand), writable(inner), writable(outer), {}};
  for (size_t s = 0; s < states.size(); ++s) p.states[s] = writable(states[s]);
  return p;
}

}  // namespace fastrnn::cuda
