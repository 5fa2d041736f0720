// The layer in plain eager mode: the operators called without the dispatcher, and their autograd node in C++.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <string>

#include "binding/form.h"
#include "binding/ops.h"

namespace fastrnn {

// Everything that a call of a layer depends on. `inputs`: x, w_ih, w_hh, b_ih, b_hh, w_hr, then the states; an
// undefined tensor is one that was left out. x and the states, hence outputs and gradients too, are laid out in `form`.
struct LayerCall {
  std::string cell;
  bool reverse;
  OptionalTensor batch_sizes, lengths, reset;
  Tensors inputs;
  Form form;
};

constexpr size_t kFixedInputs = 6;

// What a backward pass that is itself to be differentiated calls: (call, needs, gradients of y and the final states,
// y and what the forward pass kept) -> as layer_backward. In the operators' own layout.
using HigherOrder =
    std::function<Tensors(const LayerCall&, const std::array<bool, 7>&, const Tensors&, const Tensors&)>;
void set_higher_order(HigherOrder function);

// Whether the operators may be called directly: plain CPU tensors, and no mode that wants to see every call.
bool is_plain(const LayerCall& call);

// Whether x has one time step.
bool is_single_step(const LayerCall& call);

// y, then the final states; differentiable if grad mode is on and an input requires it.
Tensors run_layer(LayerCall call);
// The same for two calls that do not depend on each other, at once where that is better.
std::array<Tensors, 2> run_both(std::array<LayerCall, 2> calls);

}  // namespace fastrnn
