// A call of one layer in one direction over a whole sequence: the arguments of the operators, on every device.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "ops/aten.h"

namespace fastrnn {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
// `Tensor[]?` of the schemas. None and an empty list are equivalent: AOTInductor passes None for an exported program's
// empty list.
using OptionalTensors = std::optional<at::TensorList>;

inline OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); }

// The differentiable inputs, by index in LayerCall::inputs.
enum Input : size_t { kX, kWIh, kWHh, kBIh, kBHh, kWHr, kFixedInputs };

struct LayerCall {
  std::string cell;
  bool reverse = false;
  double clip = 0;  // > 0: elements of ∂L/∂h_t are clipped to ±clip before they pass through the step
  OptionalTensor batch_sizes, lengths, reset;
  // x, w_ih, w_hh, b_ih, b_hh, w_hr (undefined: missing), then the initial states (none: zeros), then the states that
  // segments after a reset start from (none: the initial ones).
  Tensors inputs;
  size_t restarts = 0;  // number of the latter

  const Tensor& x() const { return inputs[kX]; }
  const Tensor& w_ih() const { return inputs[kWIh]; }
  const Tensor& w_hh() const { return inputs[kWHh]; }
  const Tensor& b_ih() const { return inputs[kBIh]; }
  const Tensor& b_hh() const { return inputs[kBHh]; }
  const Tensor& w_hr() const { return inputs[kWHr]; }
  at::TensorList states() const {
    return at::TensorList(inputs).slice(kFixedInputs, inputs.size() - kFixedInputs - restarts);
  }
  at::TensorList restart() const { return at::TensorList(inputs).slice(inputs.size() - restarts); }

  // Raises for tensors in a `Tensor[]?` that only a Tensor subclass can read: the dispatcher does not inspect such a
  // list, so they arrive here if the other arguments are ordinary.
  void set_states(const OptionalTensors& states, const OptionalTensors& restart) {
    const bool excluded = c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::Python);
    const auto append = [&](const OptionalTensors& given, const char* name) {
      if (!given) return size_t{0};
      for (const Tensor& t : *given) {
        TORCH_CHECK(excluded || !t.key_set().has(c10::DispatchKey::Python), name,
                    ": expected ordinary tensors as the other arguments are, got a subclass with __torch_dispatch__");
        inputs.push_back(t);
      }
      return given->size();
    };
    append(states, "states");
    restarts = append(restart, "restart");
  }
};

// Results requested from a backward pass: gradients of the fixed inputs by index, of the initial states and of the
// states after a reset, then intermediate gradients for analyses.
enum Want : size_t {
  kStates = kFixedInputs,
  kRestart,
  kProducts,  // ∂L/∂(W·x) (…, G·H) and ∂L/∂(R·h) (…, R·H)
  kHidden,    // ∂L/∂h_t, summed over all paths (…, P)
  kLater,     // the part of each state's gradient that comes from later steps (…, P or H)
  kWants
};
using Wanted = std::array<bool, kWants>;

// Gradients, in the order in which `layer_backward` returns them: an undefined tensor or an empty list if not
// requested.
struct Gradients {
  std::array<Tensor, kFixedInputs> fixed;
  Tensors states, restart, products, hidden, later;

  Tensors flat() const {
    Tensors out(fixed.begin(), fixed.end());
    for (const Tensors* part : {&states, &restart, &products, &hidden, &later}) {
      out.insert(out.end(), part->begin(), part->end());
    }
    return out;
  }
};

}  // namespace fastrnn
