// Definition of the operators, and their registration for the CPU.
#include "ops/operators.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "ops/cpu/device.h"

namespace fastrnn {

ForwardResult dispatch_forward(const LayerCall& call, bool training) {
  static const auto run = c10::Dispatcher::singleton()
                              .findSchemaOrThrow("fastrnn::sequence_forward", "")
                              .typed<decltype(sequence_forward<Cpu>)>();
  return run.call(call.cell, call.x(), optional(call.w_ih()), call.w_hh(), optional(call.b_ih()), optional(call.b_hh()),
                  optional(call.w_hr()), call.states(), call.batch_sizes, call.lengths, call.reset, call.reverse,
                  training, call.restart());
}

Tensors dispatch_backward(const LayerCall& call, at::TensorList grads, const Tensor& y, at::TensorList saved,
                          const Wanted& wanted) {
  static const auto run = c10::Dispatcher::singleton()
                              .findSchemaOrThrow("fastrnn::layer_backward", "")
                              .typed<decltype(layer_backward<Cpu>)>();
  c10::List<OptionalTensor> finals;
  for (const Tensor& g : grads.slice(1)) finals.push_back(optional(g));
  return run.call(call.cell, optional(grads[0]), finals, call.x(), optional(call.w_ih()), call.w_hh(),
                  optional(call.w_hr()), call.states(), y, saved, call.batch_sizes, call.lengths, call.reset,
                  call.reverse, wanted, call.restart(), call.clip);
}

}  // namespace fastrnn

TORCH_LIBRARY(fastrnn, m) {
  m.def(fastrnn::kForwardSchema);
  m.def(fastrnn::kBackwardSchema);
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { fastrnn::register_operators<fastrnn::Cpu>(m); }
