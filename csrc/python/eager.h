// A layer in plain eager mode: its operators run without the dispatcher, and their autograd node in C++.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <functional>

#include "ops/backward.h"
#include "python/form.h"

namespace fastrnn {

// A call whose x and states, and so outputs and gradients too, are in the caller's layout.
struct EagerCall : LayerCall {
  Form form;
};

// Computes a backward pass that is itself to be differentiated: (call, wanted, gradients of y and the final states, y
// and the saved tensors) -> gradients in the order of the inputs. In the operators' own layout.
using HigherOrder = std::function<Tensors(const LayerCall&, const Wanted&, const Tensors&, const Tensors&)>;
void set_higher_order(HigherOrder function);

// Return true if the operators may be called directly: plain CPU tensors, and no mode that wants to see every call.
bool is_plain(const LayerCall& call);

// Return true if x has one time step.
bool is_single_step(const EagerCall& call);

// y, then the final states; differentiable if grad mode is on and an input requires it.
Tensors run_layer(EagerCall call);
// The same for two calls that do not depend on each other, at once where that is better.
std::array<Tensors, 2> run_both(std::array<EagerCall, 2> calls);

}  // namespace fastrnn
