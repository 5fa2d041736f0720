#include "binding/eager.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>

#include "binding/node.h"

namespace fastrnn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

HigherOrder higher_order;

bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet kWrapped({c10::DispatchKey::Python, c10::DispatchKey::Batched,
                                          c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return !t.key_set().has_any(kWrapped);
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); }

// In the operators' own layout, without autograd's knowledge.
Tensors plain_inputs(const LayerCall& call) {
  Tensors in = call.inputs;
  if (call.form.plain()) return in;
  in[0] = call.form.rows(in[0]);
  for (size_t k = kFixedInputs; k < in.size(); ++k) in[k] = call.form.state(in[k]);
  return in;
}

std::tuple<Tensor, Tensors, Tensors> forward(const LayerCall& call, bool training) {
  const Tensors in = plain_inputs(call);
  return forward_layer(call.cell, in[0], optional(in[1]), in[2], optional(in[3]), optional(in[4]), optional(in[5]),
                       at::TensorList(in).slice(kFixedInputs), call.batch_sizes, call.lengths, call.reset, call.reverse,
                       training);
}

Tensors in_form(const Form& form, Tensor y, Tensors& finals) {
  Tensors outputs{std::move(y)};
  outputs.insert(outputs.end(), std::make_move_iterator(finals.begin()), std::make_move_iterator(finals.end()));
  if (form.plain()) return outputs;
  form.give_rows(outputs[0]);
  for (size_t k = 1; k < outputs.size(); ++k) form.give_state(outputs[k]);
  return outputs;
}

// Gradients through plain torch, where they are to be differentiated themselves.
Tensors tracked_gradients(LayerCall call, const std::array<bool, 7>& needs, Tensors grads, Tensors results) {
  const Form form = call.form;
  if (!form.plain()) {
    call.inputs[0] = form.tracked_rows(call.inputs[0]);
    for (size_t k = kFixedInputs; k < call.inputs.size(); ++k) call.inputs[k] = form.tracked_state(call.inputs[k]);
    if (grads[0].defined()) grads[0] = form.tracked_rows(grads[0]);
    for (size_t k = 1; k < grads.size(); ++k) {
      if (grads[k].defined()) grads[k] = form.tracked_state(grads[k]);
    }
  }
  Tensors reserve(results.begin() + 1, results.end());
  fill_reserve(reserve, call.inputs[2]);
  std::move(reserve.begin(), reserve.end(), results.begin() + 1);
  Tensors found = higher_order(call, needs, grads, results);
  if (form.plain()) return found;
  if (needs[0]) found[0] = form.tracked_back_rows(found[0]);
  for (size_t k = kFixedInputs; k < found.size(); ++k) found[k] = form.tracked_back_state(found[k]);
  return found;
}

// `results`: y (T, B, P) and what the forward pass kept.
Tensors gradients(const LayerCall& call, const std::array<bool, 7>& needs, variable_list grads, Tensors results,
                  bool changed) {
  if (changed) {
    const at::NoGradGuard no_grad;
    auto [y, finals, reserve] = forward(call, true);
    results = {y};
    results.insert(results.end(), reserve.begin(), reserve.end());
  }
  // A gradient that is not plain (batched by vmap, wrapped by torch.func) is the business of Python as well.
  const auto wrapped = [](const Tensor& g) { return g.defined() && !is_plain(g); };
  if (at::GradMode::is_enabled() || std::any_of(grads.begin(), grads.end(), wrapped)) {
    return tracked_gradients(call, needs, std::move(grads), std::move(results));
  }
  const Tensors in = plain_inputs(call);
  if (!call.form.plain()) {
    if (grads[0].defined()) grads[0] = call.form.rows(grads[0]);
    for (size_t k = 1; k < grads.size(); ++k) {
      if (grads[k].defined()) grads[k] = call.form.state(grads[k]);
    }
  }
  Tensors found = backward_layer(call.cell, grads, in[0], optional(in[1]), in[2], optional(in[5]),
                                 at::TensorList(in).slice(kFixedInputs), results[0], at::TensorList(results).slice(1),
                                 call.batch_sizes, call.lengths, call.reset, call.reverse, needs);
  if (call.form.plain()) return found;
  if (found[0].defined()) call.form.give_rows(found[0]);
  for (size_t k = kFixedInputs; k < found.size(); ++k) call.form.give_state(found[k]);
  return found;
}

}  // namespace

// What is saved: all inputs, batch_sizes, lengths, reset, y, and what the forward pass kept.
variable_list layer_gradients(LayerCall call, size_t inputs, const variable_list& saved, bool changed,
                              const std::function<bool(size_t)>& wants, const variable_list& grads) {
  call.inputs.assign(saved.begin(), saved.begin() + static_cast<int64_t>(inputs));
  std::array<bool, 7> needs{};
  size_t edges = 0;
  for (size_t k = 0; k < inputs; ++k) {
    if (call.inputs[k].defined() && wants(edges++)) needs[std::min(k, kFixedInputs)] = true;
  }
  if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); })) {
    return variable_list(edges);
  }
  auto next = saved.begin() + static_cast<int64_t>(inputs);
  call.batch_sizes = optional(*next++);
  call.lengths = optional(*next++);
  call.reset = optional(*next++);
  Tensors found = gradients(call, needs, grads, Tensors(next, saved.end()), changed);
  variable_list out;
  out.reserve(edges);
  for (size_t k = 0; k < inputs; ++k) {
    if (!call.inputs[k].defined()) continue;
    out.push_back(needs[std::min(k, kFixedInputs)] ? std::move(found[k]) : Tensor());
  }
  return out;
}

void set_higher_order(HigherOrder function) { higher_order = std::move(function); }

bool is_plain(const LayerCall& call) {
  if (c10::impl::dispatch_mode_enabled() ||
      c10::impl::tls_local_dispatch_key_set().included_.has(c10::DispatchKey::Tracer)) {
    return false;
  }
  return std::all_of(call.inputs.begin(), call.inputs.end(),
                     [](const Tensor& t) { return !t.defined() || (t.device().is_cpu() && is_plain(t)); });
}

Tensors run_layer(LayerCall call) {
  bool needed = false;
  if (at::GradMode::is_enabled() && !c10::InferenceMode::is_enabled()) {
    for (const Tensor& t : call.inputs) needed = needed || (t.defined() && t.requires_grad());
  }
  if (!needed) {
    auto [y, finals, reserve] = forward(call, false);
    return in_form(call.form, std::move(y), finals);
  }
  auto [y, finals, reserve] = [&] {
    const at::NoGradGuard no_grad;
    return forward(call, true);
  }();
  // torch.nn.GRU and RNN let their output be changed in place. So y is saved under a version counter of its own.
  const Tensor kept = memory_of(y, y.sizes());
  const Form form = call.form;
  Tensors outputs = in_form(form, std::move(y), finals);
  record_layer(std::move(call), outputs, kept, reserve);
  return outputs;
}

}  // namespace fastrnn
