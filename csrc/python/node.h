// Autograd node of a layer.
#pragma once

#include "python/eager.h"

namespace fastrnn {

// Records `outputs`, y and the final states of `call`, in autograd. `own_y`: y (T, B, P) with its own version counter;
// `saved`: the other tensors saved for backward.
void record_layer(EagerCall call, Tensors& outputs, const Tensor& own_y, const Tensors& saved);

// Gradients of the existing inputs, in order. `call` has everything except its tensors, which are in `saved`: `inputs`
// inputs, batch_sizes, lengths, reset, y, and the forward pass's saved tensors. `changed`: y has changed since.
// `wants`: whether the gradient of the k-th existing input is requested.
torch::autograd::variable_list layer_gradients(EagerCall call, size_t inputs,
                                               const torch::autograd::variable_list& saved, bool changed,
                                               const std::function<bool(size_t)>& wants,
                                               const torch::autograd::variable_list& grads);

// Return true if this needs the values of all inputs, including those that a first derivative does not read: it is to
// be differentiated itself, or the forward pass is run again.
bool reads_all_inputs(const torch::autograd::variable_list& grads, bool changed);

}  // namespace fastrnn
