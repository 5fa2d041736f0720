#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "cuda/layout.h"
#include "cuda_binding/choice.h"
#include "cuda_binding/errors.h"
#include "cuda_binding/inside.h"
#include "cuda_binding/ops.h"
#include "cuda_binding/products.h"
#include "cuda_binding/stepwise.h"

namespace fastrnn::cuda {

namespace {

// What the backward drivers need of the forward pass, and how its rows lie.
struct Backward {
  Call call;
  Tensor w_hh;
  OptionalTensor w_hr;
  Tensors states;
  Tensor y;  // (N, P)
  Tensors reserve;
  bool reverse;

  Backward(c10::string_view cell, const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial,
           const Tensor& y, at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
           const OptionalTensor& reset, bool reverse)
      : call(cell, y, w_hh, w_hr, batch_sizes, lengths, reset),
        w_hh(dense(w_hh)),
        w_hr(dense(w_hr)),
        reserve(reserve.begin(), reserve.end()),
        reverse(reverse) {
    std::vector<int64_t> sizes = call.layout.shape;
    sizes.push_back(call.projected);
    call.check(y, sizes, "y");
    this->y = call.layout.gather(y);
    call.check_states(initial, "states");
    TORCH_CHECK(reserve.size() == 4, "reserve: expected what a forward pass with training=True returned, got ",
                reserve.size(), " tensors");
    check_reserve();
    for (const Tensor& s : initial) states.push_back(dense(s));
  }

  void check_reserve() {
    const CellKernels& cell = *call.cell;
    const int64_t H = call.hidden;
    const std::array<int64_t, 4> widths{cell.saved > 0 ? cell.gates * H : 0, std::max(0, cell.saved - cell.gates) * H,
                                        (cell.states - 1) * H, call.two_products() ? H : 0};
    const auto type = c10::typeMetaToScalarType(call.options.dtype());
    for (size_t k = 0; k < reserve.size(); ++k) {
      const auto expected = k == 2 ? call.compute_type() : type;
      if (!reserve[k].defined() && widths[k] == 0) continue;
      TORCH_CHECK(reserve[k].defined() && reserve[k].numel() == widths[k] * (widths[k] > 0 ? call.layout.rows : 0) &&
                      (widths[k] == 0 || reserve[k].scalar_type() == expected) && reserve[k].device() == call.device,
                  "reserve: expected what the forward pass returned, got ", reserve[k].toString(), " of shape ",
                  reserve[k].sizes(), " at position ", k);
      reserve[k] = widths[k] > 0 ? dense(reserve[k]) : Tensor();
    }
  }
};

struct Gradients {
  Tensor da;           // (N, G·H)
  Tensor drh;          // (N, (R - split_from)·H): where it differs from da
  Tensor dparameters;  // (N, Q·H)
  Tensors initial;     // (B, ·); empty if not wanted
  Tensor dh;           // (N, P) or undefined
  Tensors arrived;     // of each state (N, ·), what came from later steps; empty if not wanted
};

// ∂L/∂rh, (N, R·H).
Tensor whole_drh(const Call& call, const Gradients& g) {
  const int64_t rest = call.split_width(), split = call.recurrent_width() - rest;
  if (rest == 0) return g.da.narrow(1, 0, split);
  return split == 0 ? g.drh : at::cat({g.da.narrow(1, 0, split), g.drh}, 1);
}

// `grads`: of y, then of the final states, undefined where there is none.
Gradients run_backward(const Backward& b, const Tensors& grads, bool want_initial, bool want_dh,
                       bool want_arrived = false) {
  const Call& call = b.call;
  const Layout& layout = call.layout;
  const int S = call.cell->states;
  TORCH_CHECK(grads.size() == 1 || static_cast<int>(grads.size()) == S + 1, "grad_final: expected ", S,
              " gradients, got ", grads.size() - 1);
  Gradients out;
  out.da = fresh({layout.rows, call.gate_width()}, call.options);
  if (call.split_width() > 0) out.drh = fresh({layout.rows, call.split_width()}, call.options);
  if (call.cell->parameters > 0) {
    out.dparameters = fresh({layout.rows, call.cell->parameters * call.hidden}, call.options);
  }
  if (want_dh || call.projection) out.dh = fresh({layout.rows, call.projected}, call.options);
  Tensor gy;
  if (grads[0].defined()) {
    std::vector<int64_t> sizes = layout.shape;
    sizes.push_back(call.projected);
    call.check(grads[0], sizes, "grad_y");
    gy = layout.gather(grads[0]);
  }
  BackwardArgs args{};
  args.rows = layout.describe(b.reverse);
  args.hidden = call.hidden;
  args.projected = call.projected;
  args.w_hh = data_of(b.w_hh);
  args.parameters = call.parameters_of(b.w_hh);
  args.gates = data_of(b.reserve[0]);
  args.extra = data_of(b.reserve[1]);
  args.cells = data_of(b.reserve[2]);
  args.unprojected = data_of(b.reserve[3]);
  args.y = data_of(b.y);
  args.grad_y = data_of(gy);
  args.da = writable(out.da);
  args.drh = writable(out.drh);
  args.dparameters = writable(out.dparameters);
  args.dh = writable(out.dh);
  args.clip = call.clip;
  args.projection = call.projection;
  Tensors finals(S), restarts(S);
  for (int s = 0; s < S; ++s) {
    const std::array<int64_t, 2> sizes{layout.batch, call.width(s)};
    args.initial[s] = b.states.empty() ? nullptr : data_of(b.states[s]);
    if (grads.size() > 1 && grads[s + 1].defined()) {
      call.check(grads[s + 1], sizes, "grad_final");
      finals[s] = dense(grads[s + 1]);
      args.grad_final[s] = data_of(finals[s]);
    }
    if (want_arrived) {
      const auto type = call.options.dtype(call.compute_type());
      args.arrived[s] = writable(out.arrived.emplace_back(fresh({layout.rows, call.width(s)}, type)));
    }
    if (!want_initial) continue;
    args.grad_initial[s] = writable(out.initial.emplace_back(fresh(sizes, call.options)));
    if (!layout.reset.defined()) continue;
    restarts[s] = at::zeros(sizes, call.options.dtype(call.compute_type()));
    args.restarts[s] = writable(restarts[s]);
  }
  if (layout.batch > 0 && !run_persistent(call, args, call.kernels->backward, true)) {
    run_stepwise(call, args, b.w_hh, b.w_hr);
  }
  return out;
}

Tensors joined(const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final) {
  Tensors grads{grad_y.value_or(Tensor())};
  for (const OptionalTensor& g : grad_final) grads.push_back(g.value_or(Tensor()));
  return grads;
}

// h before each row's step, (N, P). Undefined where it takes no more than a shift by one step to find.
Tensor all_before(const Backward& b) {
  const Layout& layout = b.call.layout;
  if (layout.plain()) return {};
  Tensor out = fresh(b.y.sizes(), b.call.options);
  if (out.numel() == 0) return out;
  const Error error =
      hidden_before(layout.describe(b.reverse), data_of(b.y), b.states.empty() ? nullptr : data_of(b.states[0]),
                    writable(out), b.call.projected, static_cast<int>(out.itemsize()),
                    c10::cuda::getCurrentCUDAStream(b.call.device.index()).stream());
  check(error, "the gradient of w_hh");
  return out;
}

// Some rows of ∂L/∂w_hh = Σ drhᵀ·h: those of the gates whose drh is given, (N, ·), into `out` (·, P).
void recurrent_gradient_into(Tensor out, const Backward& b, const Tensor& drh, const Tensor& before) {
  if (before.defined()) return products::of_weight_into(out, drh, before);
  const int64_t B = b.call.layout.batch, rest = b.call.layout.rows - B;
  if (rest == 0) {
    if (!b.states.empty()) return products::of_weight_into(out, drh, b.states[0]);
    out.zero_();
    return;
  }
  products::of_weight_into(out, drh.narrow(0, b.reverse ? 0 : B, rest), b.y.narrow(0, b.reverse ? B : 0, rest));
  if (b.states.empty()) return;
  const int64_t first = b.reverse ? rest : 0;  // the step that starts from the initial state
  products::add_of_weight(out, drh.narrow(0, first, B), b.states[0]);
}

Tensor recurrent_gradient(const Backward& b, const Gradients& g) {
  const Call& call = b.call;
  Tensor out = fresh(b.w_hh.sizes(), call.options);
  const int64_t first = call.first_width(), width = call.recurrent_width();
  const int64_t rest = call.split_width(), split = width - rest;
  if (const int64_t parameters = call.cell->parameters; parameters > 0) {
    out.narrow(0, width, parameters).copy_(g.dparameters.unflatten(1, {parameters, call.hidden}).sum(0));
  }
  if (width == 0) return out;
  const Tensor before = first > 0 ? all_before(b) : Tensor();
  if (first < width) {
    const Tensor drh = whole_drh(call, g), vector = b.reserve[3].view({-1, call.hidden});
    products::of_weight_into(call.second_product(out), drh.narrow(1, first, width - first), vector);
    if (first > 0) recurrent_gradient_into(call.first_product(out), b, drh.narrow(1, 0, first), before);
  } else if (rest == 0 || split == 0) {
    recurrent_gradient_into(call.first_product(out), b, whole_drh(call, g), before);
  } else {
    recurrent_gradient_into(out.narrow(0, 0, split), b, g.da.narrow(1, 0, split), before);
    recurrent_gradient_into(out.narrow(0, split, rest), b, g.drh, before);
  }
  return out;
}

// ∂L/∂b_hh = Σ drh. `input`: ∂L/∂b_ih if it is known; never one tensor for two gradients.
Tensor bias_gradient(const Call& call, const Gradients& g, const Tensor& input) {
  const int64_t rest = call.split_width(), split = call.recurrent_width() - rest;
  if (split == 0) return rest > 0 ? g.drh.sum(0) : at::empty({0}, call.options);
  if (split + rest != call.gate_width()) return whole_drh(call, g).sum(0);
  Tensor out = input.defined() ? input.clone() : g.da.sum(0);
  if (rest > 0) out.narrow(0, split, rest).copy_(g.drh.sum(0));
  return out;
}

}  // namespace

// The time loop alone.
std::tuple<Tensor, Tensor, Tensors, Tensor> sequence_backward(
    c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
    const Tensor& w_hh, const OptionalTensor& w_hr, OptionalTensors initial, const Tensor& y, at::TensorList reserve,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset, bool reverse,
    bool want_initial, bool want_dh) {
  const Inside inside(w_hh);
  const Backward b(cell, w_hh, w_hr, states_of(initial), y, reserve, batch_sizes, lengths, reset, reverse);
  const Gradients g = run_backward(b, joined(grad_y, grad_final), want_initial, want_dh);
  const Layout& layout = b.call.layout;
  const auto none = [&] { return at::empty({0}, b.call.options); };
  return {layout.shaped(g.da), b.call.split_width() > 0 ? layout.shaped(whole_drh(b.call, g)) : none(), g.initial,
          want_dh ? layout.shaped(g.dh) : none()};
}

namespace {

// `flow`: what layer_backward_flow returns more; null: not wanted.
Tensors backward_layer(c10::string_view cell, const Tensors& grads, const Tensor& x, const OptionalTensor& w_ih,
                       const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial, const Tensor& y,
                       at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs, Tensors* flow) {
  const Inside inside(w_hh);
  const Backward b(cell, w_hh, w_hr, initial, y, reserve, batch_sizes, lengths, reset, reverse);
  const Layout& layout = b.call.layout;
  std::vector<int64_t> x_sizes = layout.shape;
  x_sizes.push_back(w_ih ? w_ih->size(-1) : b.call.gate_width());
  if (w_ih) b.call.check(*w_ih, {b.call.gate_width(), w_ih->size(-1)}, "w_ih");
  b.call.check(x, x_sizes, "x");
  Gradients g = run_backward(b, grads, needs[6], false, flow != nullptr);
  if (flow != nullptr) {
    flow->push_back(layout.shaped(whole_drh(b.call, g).clone()));  // no tensor twice among an operator's outputs
    for (const Tensor& t : g.arrived) flow->push_back(layout.shaped(t));
  }
  Tensors out(6);
  if (needs[0]) out[0] = layout.shaped(w_ih ? products::of_input(g.da, *w_ih) : g.da);
  if (needs[1] && w_ih) out[1] = products::of_weight(g.da, layout.gather_without_padding(x));
  if (needs[2]) out[2] = recurrent_gradient(b, g);
  if (needs[3]) out[3] = g.da.sum(0);
  if (needs[4]) out[4] = bias_gradient(b.call, g, out[3]);
  if (needs[5] && w_hr) out[5] = products::of_weight(g.dh, b.reserve[3].view({-1, b.call.hidden}));
  for (Tensor& t : g.initial) out.push_back(std::move(t));
  for (Tensor& t : out) {
    if (!t.defined()) t = at::empty({0}, b.call.options);
  }
  return out;
}

}  // namespace

Tensors layer_backward(c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
                       const Tensor& x, const OptionalTensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
                       OptionalTensors initial, const Tensor& y, at::TensorList reserve,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
                       bool reverse, std::array<bool, 7> needs) {
  return backward_layer(cell, joined(grad_y, grad_final), x, w_ih, w_hh, w_hr, states_of(initial), y, reserve,
                        batch_sizes, lengths, reset, reverse, needs, nullptr);
}

Tensors layer_backward_flow(c10::string_view cell, const OptionalTensor& grad_y,
                            const c10::List<OptionalTensor>& grad_final, const Tensor& x, const OptionalTensor& w_ih,
                            const Tensor& w_hh, const OptionalTensor& w_hr, OptionalTensors initial, const Tensor& y,
                            at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                            const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs) {
  Tensors flow;
  Tensors out = backward_layer(cell, joined(grad_y, grad_final), x, w_ih, w_hh, w_hr, states_of(initial), y, reserve,
                               batch_sizes, lengths, reset, reverse, needs, &flow);
  out.insert(out.end(), flow.begin(), flow.end());
  return out;
}

}  // namespace fastrnn::cuda
