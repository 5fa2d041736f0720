#include "binding/eager.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>

namespace fastrnn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

HigherOrder higher_order;

bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet kWrapped({c10::DispatchKey::Python, c10::DispatchKey::Batched,
                                          c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return !t.key_set().has_any(kWrapped);
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); }

std::tuple<Tensor, Tensors, Tensors> forward(const LayerCall& call, bool training) {
  const Tensors& in = call.inputs;
  return sequence_forward(call.cell, in[0], optional(in[1]), in[2], optional(in[3]), optional(in[4]), optional(in[5]),
                          at::TensorList(in).slice(kFixedInputs), call.batch_sizes, call.lengths, call.reset,
                          call.reverse, training);
}

// The node. Its variable inputs are those of `call.inputs` that are there, in order. Saved: all inputs, batch_sizes,
// lengths, reset, y, and what the forward pass kept.
struct Layer : torch::autograd::Function<Layer> {
  static variable_list forward(AutogradContext* ctx, at::TensorList, const LayerCall& call) {
    auto [y, finals, reserve] = fastrnn::forward(call, true);
    ctx->saved_data["cell"] = call.cell;
    ctx->saved_data["reverse"] = call.reverse;
    ctx->saved_data["inputs"] = static_cast<int64_t>(call.inputs.size());
    ctx->set_materialize_grads(false);
    // torch.nn.GRU and RNN let their output be changed in place. So y is saved under a version counter of its own, and
    // `watched` tells whether the caller's was changed since.
    Tensor watched = at::empty({0}, y.options());  // the counter alone: y's memory may go when its owner lets it go
    torch::autograd::impl::set_version_counter(watched, torch::autograd::impl::version_counter(y));
    ctx->saved_data["watched"] = watched;
    variable_list saved = call.inputs;
    for (const OptionalTensor& t : {call.batch_sizes, call.lengths, call.reset}) saved.push_back(t.value_or(Tensor()));
    saved.push_back(y.variable_data());
    saved.insert(saved.end(), reserve.begin(), reserve.end());
    ctx->save_for_backward(saved);
    variable_list outputs{y};
    outputs.insert(outputs.end(), finals.begin(), finals.end());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t inputs = ctx->saved_data["inputs"].toInt();
    LayerCall call{ctx->saved_data["cell"].toStringRef(), ctx->saved_data["reverse"].toBool(), {}, {}, {}, {}};
    call.inputs.assign(saved.begin(), saved.begin() + inputs);
    std::array<bool, 7> needs{};
    size_t edge = 0;
    for (size_t k = 0; k < call.inputs.size(); ++k) {
      if (call.inputs[k].defined() && ctx->needs_input_grad(edge++)) needs[std::min(k, kFixedInputs)] = true;
    }
    auto next = saved.begin() + inputs;
    call.batch_sizes = optional(*next++);
    call.lengths = optional(*next++);
    call.reset = optional(*next++);
    Tensors results(next, saved.end());

    const bool any = std::any_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); });
    Tensors found;
    if (any) found = gradients(ctx, call, needs, grads, results);
    variable_list out;
    for (size_t k = 0; k < call.inputs.size(); ++k) {
      if (!call.inputs[k].defined()) continue;
      const bool wanted = any && needs[std::min(k, kFixedInputs)];
      out.push_back(wanted ? found[k] : Tensor());
    }
    out.emplace_back();  // `call`
    return out;
  }

  static Tensors gradients(AutogradContext* ctx, const LayerCall& call, const std::array<bool, 7>& needs,
                           const variable_list& grads, Tensors& results) {
    if (ctx->saved_data["watched"].toTensor()._version() != 0) {
      const at::NoGradGuard no_grad;
      auto [y, finals, reserve] = fastrnn::forward(call, true);
      results = {y};
      results.insert(results.end(), reserve.begin(), reserve.end());
    }
    // A gradient that is not plain (batched by vmap, wrapped by torch.func) is the business of Python as well.
    const auto wrapped = [](const Tensor& g) { return g.defined() && !is_plain(g); };
    if (at::GradMode::is_enabled() || std::any_of(grads.begin(), grads.end(), wrapped)) {
      return higher_order(call, needs, grads, results);
    }
    const Tensors& in = call.inputs;
    c10::List<OptionalTensor> finals;
    for (size_t k = 1; k < grads.size(); ++k) finals.push_back(optional(grads[k]));
    return layer_backward(call.cell, optional(grads[0]), finals, in[0], optional(in[1]), in[2], optional(in[5]),
                          at::TensorList(in).slice(kFixedInputs), results[0], at::TensorList(results).slice(1),
                          call.batch_sizes, call.lengths, call.reset, call.reverse, needs);
  }
};

}  // namespace

void set_higher_order(HigherOrder function) { higher_order = std::move(function); }

bool is_plain(const LayerCall& call) {
  if (c10::impl::dispatch_mode_enabled() ||
      c10::impl::tls_local_dispatch_key_set().included_.has(c10::DispatchKey::Tracer)) {
    return false;
  }
  return std::all_of(call.inputs.begin(), call.inputs.end(),
                     [](const Tensor& t) { return !t.defined() || (t.device().is_cpu() && is_plain(t)); });
}

Tensors run_layer(const LayerCall& call) {
  if (at::GradMode::is_enabled() && !c10::InferenceMode::is_enabled()) {
    Tensors present;
    bool needed = false;
    for (const Tensor& t : call.inputs) {
      if (!t.defined()) continue;
      present.push_back(t);
      needed = needed || t.requires_grad();
    }
    if (needed) return Layer::apply(at::TensorList(present), call);
  }
  auto [y, finals, reserve] = forward(call, false);
  Tensors outputs{y};
  outputs.insert(outputs.end(), finals.begin(), finals.end());
  return outputs;
}

}  // namespace fastrnn
