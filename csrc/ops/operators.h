// torch.ops.fastrnn: schemas of the operators, and conversion of a call from and to their arguments. Only here is a
// call a long list of arguments.
#pragma once

#include <c10/util/string_view.h>
#include <torch/library.h>

#include "ops/backward.h"

namespace fastrnn {

// sequence_forward: y (T, B, P) or (N, P); final states (B, ·); and, if training, the saved tensors (saved_tensors()),
// each (…, width) with the leading dimensions of x. With lengths, only the first N rows of them are used. A tensor that
// a cell does not save has shape (0, 0).
constexpr const char* kForwardSchema =
    "sequence_forward(str cell, Tensor x, Tensor? w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
    "Tensor[]? states, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, bool training, "
    "Tensor[]? restart=None) -> (Tensor, Tensor[], Tensor[])";
// layer_backward: gradients of x, w_ih, w_hh, b_ih, b_hh, w_hr (empty tensors if not requested); then the other
// requested results, in the order of enum Want: gradients of the initial states, of the states after a reset (none
// without restart); ∂L/∂(W·x) and ∂L/∂(R·h); ∂L/∂h_t; for each state the gradient from later steps, in the compute
// dtype. Row tensors have the caller's leading dimensions.
constexpr const char* kBackwardSchema =
    "layer_backward(str cell, Tensor? grad_y, Tensor?[] grad_final, Tensor x, Tensor? w_ih, Tensor w_hh, "
    "Tensor? w_hr, Tensor[]? states, Tensor y, Tensor[] saved, Tensor? batch_sizes, Tensor? lengths, "
    "Tensor? reset, bool reverse, bool[11] wanted, Tensor[]? restart=None, float clip=0.) -> Tensor[]";
static_assert(kWants == 11);

using ForwardResult = std::tuple<Tensor, Tensors, Tensors>;

// Replaces undefined tensors by empty ones.
inline void fill(Tensors& tensors, at::IntArrayRef sizes, const at::TensorOptions& options) {
  for (Tensor& t : tensors) {
    if (!t.defined()) t = at::empty(sizes, options);
  }
}

// An operator must not return undefined tensors.
inline void fill_saved(Tensors& saved, const LayerCall& call) {
  const auto options = call.w_hh().options().requires_grad(false);
  for (size_t k = 0; k < saved.size(); ++k) {
    const bool compute = saved_tensors(CellTraits{}, false)[k].compute;
    const auto type = call.w_hh().scalar_type();
    if (!saved[k].defined()) saved[k] = at::empty({0, 0}, options.dtype(compute ? compute_type(type) : type));
  }
}

template <class Device>
ForwardResult sequence_forward(c10::string_view cell, const Tensor& x, const OptionalTensor& w_ih, const Tensor& w_hh,
                               const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                               OptionalTensors states, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& reset, bool reverse, bool training, OptionalTensors restart) {
  const auto given = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
  LayerCall call{std::string(cell), reverse, 0, batch_sizes, lengths, reset, {}};
  call.inputs = {x, given(w_ih), w_hh, given(b_ih), given(b_hh), given(w_hr)};
  call.set_states(states, restart);
  Forward out = run_forward<Device>(call, training);
  fill_saved(out.saved, call);
  return {std::move(out.y), std::move(out.finals), std::move(out.saved)};
}

template <class Device>
Tensors layer_backward(c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
                       const Tensor& x, const OptionalTensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
                       OptionalTensors states, const Tensor& y, at::TensorList saved, const OptionalTensor& batch_sizes,
                       const OptionalTensor& lengths, const OptionalTensor& reset, bool reverse, Wanted wanted,
                       OptionalTensors restart, double clip) {
  const auto given = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
  LayerCall call{std::string(cell), reverse, clip, batch_sizes, lengths, reset, {}};
  call.inputs = {x, given(w_ih), w_hh, {}, {}, given(w_hr)};
  call.set_states(states, restart);
  Tensors grads{given(grad_y)};
  for (const OptionalTensor& g : grad_final) grads.push_back(given(g));
  Tensors out = run_backward<Device>(call, grads, y, saved, wanted).flat();
  fill(out, {0}, w_hh.options().requires_grad(false));
  return out;
}

template <class Device>
void register_operators(torch::Library& m) {
  m.impl("sequence_forward", &sequence_forward<Device>);
  m.impl("layer_backward", &layer_backward<Device>);
}

// The two operators, called through torch's dispatcher.
ForwardResult dispatch_forward(const LayerCall& call, bool training);
Tensors dispatch_backward(const LayerCall& call, at::TensorList grads, const Tensor& y, at::TensorList saved,
                          const Wanted& wanted);

}  // namespace fastrnn
