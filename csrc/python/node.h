// The autograd node of a layer.
#pragma once

#include "python/eager.h"

namespace fastrnn {

// Makes `outputs` differentiable: y and the final states of `call`. `kept`: y (T, B, P) under a version counter of its
// own; `reserve`: what the forward pass kept besides.
void record_layer(EagerCall call, Tensors& outputs, const Tensor& kept, const Tensors& saved);

// Gradients of the inputs that are there, in order. `call` has everything but its tensors, which are in `saved`: so
// many inputs, batch_sizes, lengths, reset, y, and what the forward pass kept. `changed`: y was, since. `wants`:
// whether the k-th of the inputs that are there shall have a gradient.
torch::autograd::variable_list layer_gradients(EagerCall call, size_t inputs,
                                               const torch::autograd::variable_list& saved, bool changed,
                                               const std::function<bool(size_t)>& wants,
                                               const torch::autograd::variable_list& grads);

// Whether that takes the values of all inputs, those too which a first derivative has no use for: it is itself to be
// differentiated, or the forward pass is run again.
bool reads_all_inputs(const torch::autograd::variable_list& grads, bool changed);

}  // namespace fastrnn
