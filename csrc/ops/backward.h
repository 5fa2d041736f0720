// Backward pass of a call on every device: the recurrence in reverse, then the gradients of the weights.
#pragma once

#include "ops/forward.h"

namespace fastrnn {

// Tensors of a backward pass, as the driver takes them: contiguous, rows in the order of the layout.
struct BackwardPass {
  Tensor w_hh, w_hr;
  Tensors states, restart;                  // as in ForwardPass
  Tensor y;                                 // (N, P)
  std::array<Tensor, kSavedTensors> saved;  // undefined where a cell saves none
  Tensor grad_y;                            // (N, P) or undefined
  Tensors grad_finals;                      // of each state (B, ·) or undefined
  bool hidden_unused;                       // no gradient, not even zeros, reaches the h of the last step
  // Outputs.
  Tensor da;             // (N, G·H)
  Tensor drh;            // (N, (R - split_from)·H): where it differs from da
  Tensor dparameters;    // (…, Q·H), still to be summed over rows
  Tensor dh;             // (N, P) or undefined
  Tensors grad_states;   // (B, ·); empty if not requested
  Tensors grad_restart;  // (B, ·); empty if not requested, or without restart
  Tensors later;         // of each state (N, ·); empty if not requested
};

template <class Device, class Args>
void fill(const Checked<Device>& c, const BackwardPass& pass, Args& args) {
  fill_common(c, pass, args);
  args.gates = data_of(pass.saved[0]);
  args.extra = data_of(pass.saved[1]);
  args.cells = data_of(pass.saved[2]);
  args.unprojected = data_of(pass.saved[3]);
  args.y = data_of(pass.y);
  args.grad_y = data_of(pass.grad_y);
  args.da = writable(pass.da);
  args.drh = writable(pass.drh);
  args.dparameters = writable(pass.dparameters);
  args.dh = writable(pass.dh);
  args.clip = c.clip;
  for (size_t s = 0; s < pass.grad_finals.size(); ++s) {
    args.grad_final[s] = data_of(pass.grad_finals[s]);
    if (!pass.later.empty()) args.later[s] = writable(pass.later[s]);
    if (!pass.grad_states.empty()) args.grad_initial[s] = writable(pass.grad_states[s]);
  }
}

// Takes y and the saved tensors of a forward pass, with checks: their memory may have been replaced since.
template <class Device>
void take_results(const Checked<Device>& c, const Tensor& y, at::TensorList saved, BackwardPass& pass) {
  TORCH_CHECK(saved.size() == kSavedTensors, "reserve: expected what a forward pass with training=True returned, got ",
              saved.size(), " tensors");
  pass.y = c.layout.gather(y);
  const auto tensors = c.saved();
  for (size_t k = 0; k < kSavedTensors; ++k) {
    const int64_t width = tensors[k].width(c.hidden);
    const Tensor& t = saved[k];
    if (!t.defined() && width == 0) continue;
    TORCH_CHECK(t.defined() && t.numel() == width * (width > 0 ? c.layout.capacity() : 0) &&
                    (width == 0 || t.scalar_type() == (tensors[k].compute ? c.compute_type() : c.type())) &&
                    t.device() == c.device,
                "reserve: expected what the forward pass returned, got ", t.toString(), " of shape ", t.sizes(),
                " at position ", k);
    if (width > 0) pass.saved[k] = dense(t);
  }
}

// `grads`: of y, then (optionally) of the final states; undefined for a missing one.
template <class Device>
void take_gradients(const Checked<Device>& c, at::TensorList grads, BackwardPass& pass) {
  const int S = c.cell->states;
  TORCH_CHECK(grads.size() == 1 || static_cast<int>(grads.size()) == S + 1, "grad_final: expected ", S,
              " gradients, got ", grads.size() - 1);
  if (grads[0].defined()) {
    c.check(grads[0], c.layout.sizes(c.projected), "grad_y");
    pass.grad_y = c.layout.gather(grads[0]);
  }
  pass.grad_finals.resize(S);
  for (int s = 0; s < S && grads.size() > 1; ++s) {
    if (!grads[s + 1].defined()) continue;
    c.check(grads[s + 1], {c.layout.batch, c.width(s)}, "grad_final");
    pass.grad_finals[s] = c.layout.sort(grads[s + 1]);
  }
  // As in torch, rows that end before the last step get zeros, which are slices of a step that continues.
  pass.hidden_unused = !grads[0].defined() && (grads.size() == 1 || !grads[1].defined());
}

template <class Device>
void make_outputs(const Checked<Device>& c, const LayerCall& call, const Wanted& wanted, BackwardPass& pass,
                  typename Device::Memory& memory) {
  const int64_t N = c.layout.rows;
  pass.da = memory.empty({N, c.gate_width()}, c.options);
  pass.drh = memory.empty({N, c.split_width()}, c.options);
  pass.dparameters = Device::parameter_gradients(c, memory);
  if (wanted[kHidden] || c.projection) pass.dh = memory.empty({N, c.projected}, c.options);
  for (int s = 0; s < c.cell->states; ++s) {
    const std::array<int64_t, 2> sizes{c.layout.batch, c.width(s)};
    if (wanted[kLater]) {
      pass.later.push_back(memory.empty({N, c.width(s)}, c.options.dtype(c.compute_type())));
    }
    if (!wanted[kStates] && !wanted[kRestart]) continue;
    pass.grad_states.push_back(memory.empty(sizes, c.options));
    if (call.restarts > 0) pass.grad_restart.push_back(memory.empty(sizes, c.options));
  }
}

// ∂L/∂(R·h), (N, R·H)
template <class Device>
Tensor recurrent_products(const Checked<Device>& c, const BackwardPass& pass) {
  const int64_t split = c.recurrent_width() - c.split_width();
  if (c.split_width() == 0) return split == pass.da.size(1) ? pass.da : pass.da.narrow(1, 0, split);
  return split == 0 ? pass.drh : Device::columns(pass.da, split, pass.drh);
}

// Some rows of ∂L/∂w_hh = Σ drhᵀ·h, those of the gates whose drh (N, ·) is given, into `out` (·, P). `before`: h before
// each row's time step, if that is not simply y shifted by one step.
template <class Device>
void recurrent_gradient_into(Tensor out, const Checked<Device>& c, const BackwardPass& pass, const Tensor& drh,
                             const Tensor& before) {
  using products = typename Device::products;
  if (before.defined()) return products::of_weight_into(out, drh, before);
  const int64_t B = c.layout.batch, rest = c.layout.rows - B;
  const bool none = pass.states.empty();
  if (rest == 0) {
    if (!none) return products::of_weight_into(out, drh, pass.states[0]);
    Device::clear(out);
    return Device::add_of_zeros(out, drh);
  }
  products::of_weight_into(out, drh.narrow(0, c.reverse ? 0 : B, rest), pass.y.narrow(0, c.reverse ? B : 0, rest));
  const Tensor first = drh.narrow(0, c.reverse ? rest : 0, B);  // the step that starts from the initial state
  if (none) return Device::add_of_zeros(out, first);
  products::add_of_weight(out, first, pass.states[0]);
}

// ∂L/∂w_hh of a cell that multiplies other vectors than h
template <class Device>
void vector_gradients_into(const Tensor& out, const Checked<Device>& c, const BackwardPass& pass,
                           const Tensor& before) {
  const int64_t first = c.first_width(), H = c.hidden, vectors = c.cell->vectors;
  const Tensor drh = recurrent_products(c, pass);
  const Tensor all = pass.saved[3].reshape({-1, vectors * H}).narrow(0, 0, c.layout.rows);
  for (int64_t k = 0, from = first; k < vectors; ++k) {
    const int64_t rows = c.cell->vector_blocks[k] * H;
    Device::products::of_weight_into(out.narrow(0, from, rows), drh.narrow(1, from, rows), all.narrow(1, k * H, H));
    from += rows;
  }
  if (first > 0) recurrent_gradient_into(out.narrow(0, 0, first), c, pass, drh.narrow(1, 0, first), before);
}

template <class Device>
Tensor recurrent_gradient(const Checked<Device>& c, const BackwardPass& pass) {
  constexpr int64_t kFew = 64;  // rows for which concatenating is faster than two products
  Tensor out = Device::products::empty(pass.w_hh.sizes(), pass.w_hh);
  const int64_t first = c.first_width(), width = c.recurrent_width();
  const int64_t rest = c.split_width(), split = width - rest;
  if (const int64_t parameters = c.cell->parameters; parameters > 0) {
    out.narrow(0, width, parameters).copy_(pass.dparameters.unflatten(1, {parameters, c.hidden}).sum(0));
  }
  if (width == 0) return out;
  const Tensor before = first > 0 && !c.layout.plain() ? Device::hidden_before(c, pass) : Tensor();
  if (first < width) {
    vector_gradients_into(out, c, pass, before);
  } else if (rest == 0 || split == 0 || c.layout.rows <= kFew) {
    recurrent_gradient_into(c.first_product(out), c, pass, recurrent_products(c, pass), before);
  } else {
    recurrent_gradient_into(out.narrow(0, 0, split), c, pass, pass.da.narrow(1, 0, split), before);
    recurrent_gradient_into(out.narrow(0, split, rest), c, pass, pass.drh, before);
  }
  return out;
}

// ∂L/∂b_hh = Σ drh. `input`: ∂L/∂b_ih, if known; the two gradients never share a tensor.
template <class Device>
Tensor bias_gradient(const Checked<Device>& c, const BackwardPass& pass, const Tensor& input) {
  const int64_t rest = c.split_width(), split = c.recurrent_width() - rest;
  if (split == 0) return rest == 0 ? at::empty({0}, c.options) : Device::sum_rows(pass.drh);
  if (split + rest < c.gate_width()) {
    return at::cat({Device::sum_rows(pass.da.narrow(1, 0, split)), Device::sum_rows(pass.drh)});
  }
  Tensor out = input.defined() ? Device::copy(input) : Device::sum_rows(pass.da);
  if (rest > 0) out.narrow(0, split, rest).copy_(Device::sum_rows(pass.drh));
  return out;
}

// Gradients of the initial states and the restart states, from the driver's results. `first`: see initial_states.
template <class Device>
void state_gradients(const Checked<Device>& c, const Tensor& first, const Wanted& wanted, BackwardPass& pass,
                     Gradients& out) {
  for (Tensor& g : pass.grad_states) g = c.layout.unsort(g);
  for (Tensor& g : pass.grad_restart) g = c.layout.unsort(g);
  if (first.defined()) {
    const Tensor zero = at::zeros({}, c.options);
    for (size_t s = 0; s < pass.grad_states.size(); ++s) {
      pass.grad_restart[s].add_(at::where(first, pass.grad_states[s], zero));
      pass.grad_states[s] = at::where(first, zero, pass.grad_states[s]);
    }
  }
  if (wanted[kStates]) out.states = std::move(pass.grad_states);
  if (wanted[kRestart]) out.restart = std::move(pass.grad_restart);
}

// `saved`: the tensors saved by run_forward. Everything in `wanted` is computed, except gradients of missing inputs.
template <class Device>
Gradients run_backward(const LayerCall& call, at::TensorList grads, const Tensor& y, at::TensorList saved,
                       const Wanted& wanted) {
  using products = typename Device::products;
  const typename Device::Inside inside(call);
  const Checked<Device> c(call, y);
  const typename Device::ThreadLimit limit(c, call, 2);
  typename Device::Memory memory;
  BackwardPass pass;
  pass.w_hh = dense(call.w_hh());
  pass.w_hr = dense_if(call.w_hr());
  const Tensor first = first_resets(c, call);
  pass.states = initial_states(c, call, first);
  pass.restart = restart_states(c, call);
  take_results(c, y, saved, pass);
  take_gradients(c, grads, pass);
  make_outputs(c, call, wanted, pass, memory);
  if (c.layout.batch > 0) Device::run(c, pass, memory);

  Gradients out;
  const auto& layout = c.layout;
  const Tensor &w_ih = call.w_ih(), &da = pass.da;
  if (wanted[kProducts]) {  // an operator must not return a tensor twice
    out.products = {layout.scatter(da.clone()), layout.scatter(recurrent_products(c, pass).clone())};
  }
  if (wanted[kX]) out.fixed[kX] = layout.scatter(w_ih.defined() ? products::of_input(da, present(w_ih)) : da);
  if (wanted[kWIh] && w_ih.defined()) {
    out.fixed[kWIh] = products::of_weight(da, layout.gather_without_padding(call.x()));
  }
  if (wanted[kWHh]) out.fixed[kWHh] = recurrent_gradient(c, pass);
  if (wanted[kBIh]) out.fixed[kBIh] = Device::sum_rows(da);
  if (wanted[kBHh]) out.fixed[kBHh] = bias_gradient(c, pass, out.fixed[kBIh]);
  if (wanted[kWHr] && c.projection) out.fixed[kWHr] = products::of_weight(pass.dh, Device::unprojected(c, pass));
  state_gradients(c, first, wanted, pass, out);
  if (wanted[kHidden]) out.hidden = {layout.scatter(pass.dh)};
  for (const Tensor& t : pass.later) out.later.push_back(layout.scatter(t));
  return out;
}

}  // namespace fastrnn
