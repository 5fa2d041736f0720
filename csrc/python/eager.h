// A layer in eager mode: operators called without the dispatcher, and an autograd node in C++.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <functional>

#include "ops/backward.h"
#include "python/caller_layout.h"

namespace fastrnn {

// A call whose x and states, and therefore outputs and gradients, are in the caller's layout
struct EagerCall : LayerCall {
  CallerLayout caller;
};

// Computes a backward pass that is itself to be differentiated: (call, wanted, gradients of y and the final states, y
// and the saved tensors) -> gradients in the order of the inputs, in the operators' layout.
using HigherOrder = std::function<Tensors(const LayerCall&, const Wanted&, const Tensors&, const Tensors&)>;
void set_higher_order(HigherOrder function);

// Return true if the operators may be called directly: ordinary CPU tensors, and no mode that must see every call.
bool is_plain(const LayerCall& call);

// Return true if x has one time step.
bool is_single_step(const EagerCall& call);

// y, then the final states, with their graph if grad mode is on and an input requires a gradient
Tensors run_layer(EagerCall call);
// The same for two independent calls, run concurrently if that is faster
std::array<Tensors, 2> run_both(std::array<EagerCall, 2> calls);

}  // namespace fastrnn
