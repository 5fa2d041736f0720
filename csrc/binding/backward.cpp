// The operators' gradients.
#include <string.h>

#include "binding/buffers.h"
#include "binding/finite.h"
#include "binding/modest.h"
#include "binding/ops.h"
#include "binding/products.h"

namespace fastrnn {

namespace {

// What the backward driver needs of the forward pass, and how its rows lie.
struct Backward {
  Call call;
  Tensor w_hh;
  OptionalTensor w_hr;
  Tensors states;
  Tensor y;  // (N, P)
  Tensors reserve;

  Backward(c10::string_view cell, const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial,
           const Tensor& y, at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
           const OptionalTensor& reset)
      : call(cell, y, w_hh, w_hr, batch_sizes, lengths, reset),
        w_hh(dense(w_hh)),
        w_hr(dense_if(w_hr)),
        y(call.layout.gather(y)),
        reserve(reserve.begin(), reserve.end()) {
    check_rows(y, call.projected, "y");
    call.check_states(initial, "states");
    TORCH_CHECK(reserve.size() == 4, "reserve: expected what a forward pass with training=True returned, got ",
                reserve.size(), " tensors");
    check_reserve();
    for (const Tensor& s : initial) states.push_back(call.layout.sort(s));
  }

  // What was right in the forward pass may have been given other memory since.
  void check_rows(const Tensor& t, int64_t width, const char* name) const {
    std::vector<int64_t> sizes = call.layout.shape;
    sizes.push_back(width);
    call.check(t, sizes, name);
  }

  void check_reserve() {
    const CellKernels& cell = *call.cell;
    const int64_t H = call.hidden;
    const std::array<int64_t, 4> widths{cell.saved > 0 ? cell.gates * H : 0, std::max(0, cell.saved - cell.gates) * H,
                                        (cell.states - 1) * H + cell.totals, (w_hr ? 1 : cell.vectors) * H};
    const auto type = c10::typeMetaToScalarType(call.options.dtype());
    for (size_t k = 0; k < reserve.size(); ++k) {
      const auto expected = k == 2 ? compute_type(type) : type;
      if (!reserve[k].defined() && widths[k] == 0) continue;
      TORCH_CHECK(reserve[k].defined() &&
                      reserve[k].numel() == widths[k] * (widths[k] > 0 ? call.layout.capacity() : 0) &&
                      (widths[k] == 0 || reserve[k].scalar_type() == expected) && reserve[k].device().is_cpu(),
                  "reserve: expected what the forward pass returned, got ", reserve[k].toString(), " of shape ",
                  reserve[k].sizes(), " at position ", k);
      reserve[k] = dense(reserve[k]);
    }
  }
};

struct Gradients {
  Tensor da;           // (N, G·H)
  Tensor drh;          // (N, (R - split_from)·H): where it differs from da
  Tensors initial;     // (B, ·), in the caller's order; empty if not wanted
  Tensor dh;           // (N, P) or undefined
  Tensor dparameters;  // (B, Q·H), summed over each row's steps
  Tensors arrived;     // of each state (N, ·), what came from later steps; empty if not wanted
};

// ∂L/∂rh, (N, G·H).
Tensor whole_drh(const Call& call, const Gradients& g) {
  const int64_t rest = g.drh.size(1), split = call.recurrent_width() - rest;
  if (rest == 0) return split == g.da.size(1) ? g.da : g.da.narrow(1, 0, split);
  if (split == 0) return g.drh;
  Tensor whole = products::empty({g.da.size(0), call.recurrent_width()}, g.da);
  const auto bytes = [](const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); };
  const size_t size = g.da.itemsize(), row = static_cast<size_t>(call.recurrent_width()) * size;
  const size_t row_of_da = static_cast<size_t>(call.gate_width()) * size;
  const size_t front = static_cast<size_t>(split) * size, back = static_cast<size_t>(rest) * size;
  for (size_t n = 0; n < static_cast<size_t>(g.da.size(0)); ++n) {
    memcpy(bytes(whole) + n * row, bytes(g.da) + n * row_of_da, front);
    memcpy(bytes(whole) + n * row + front, bytes(g.drh) + n * back, back);
  }
  return whole;
}

// Return true if no gradient at all, not even zeros, reaches the h of the last step. (In torch, rows that end earlier
// get zeros, as parts of a step that goes on.)
bool hidden_unused(at::TensorList grads) { return !grads[0].defined() && (grads.size() == 1 || !grads[1].defined()); }

// `grads`: of y, then of the final states, undefined where there is none.
Gradients run_backward(const Backward& b, at::TensorList grads, bool reverse, bool want_initial, bool want_dh,
                       bool want_arrived = false) {
  const Call& call = b.call;
  const Layout& layout = call.layout;
  const int S = call.cell->states;
  TORCH_CHECK(grads.size() == 1 || static_cast<int>(grads.size()) == S + 1, "grad_final: expected ", S,
              " gradients, got ", grads.size() - 1);
  Buffers buffers;
  Gradients out;
  const std::vector<int64_t> wide{layout.rows, call.gate_width()};
  out.da = buffers.empty(wide, call.options);
  const at::TensorOptions summed = call.options.dtype(compute_type(b.y.scalar_type()));
  out.dparameters = buffers.empty({layout.batch, call.cell->parameters * call.hidden}, summed);
  if (out.dparameters.numel() > 0) memset(out.dparameters.mutable_data_ptr(), 0, out.dparameters.nbytes());
  out.drh = buffers.empty({layout.rows, (call.cell->recurrent - call.cell->split_from) * call.hidden}, call.options);
  if (want_dh || b.w_hr) out.dh = buffers.empty({layout.rows, call.projected}, call.options);
  Tensor gy;
  if (grads[0].defined()) {
    b.check_rows(grads[0], call.projected, "grad_y");
    gy = layout.gather(grads[0]);
  }

  BackwardArgs args{};
  args.seq = layout.sequence(call.hidden, call.projected, reverse);
  args.w_hh = b.w_hh.const_data_ptr();
  args.w_hr = data_of(b.w_hr);
  args.parameters = call.parameters_of(b.w_hh);
  args.dparameters = out.dparameters.data_ptr();
  args.gates = data_of(b.reserve[0]);
  args.extra = data_of(b.reserve[1]);
  args.cells = data_of(b.reserve[2]);
  args.unprojected = data_of(b.reserve[3]);
  args.y = b.y.const_data_ptr();
  args.grad_y = gy.defined() ? gy.const_data_ptr() : nullptr;
  args.da = out.da.data_ptr();
  args.drh = out.drh.data_ptr();
  args.dh = out.dh.defined() ? out.dh.data_ptr() : nullptr;
  args.clip = call.clip;
  args.hidden_unused = hidden_unused(grads);
  args.initial_product = layout.steps > 1 || call.cell->second > 0 || call.cell->recurrent == 0 || call.cell->staged;
  Tensors finals(S);
  for (int s = 0; s < S; ++s) {
    args.initial[s] = b.states.empty() ? nullptr : b.states[s].const_data_ptr();
    if (grads.size() > 1 && grads[s + 1].defined()) {
      call.check(grads[s + 1], {layout.batch, call.width(s)}, "grad_final");
      finals[s] = layout.sort(grads[s + 1]);
      args.grad_final[s] = finals[s].const_data_ptr();
    }
    if (want_arrived) {
      const auto type = compute_type(c10::typeMetaToScalarType(call.options.dtype()));
      out.arrived.push_back(buffers.empty({layout.rows, call.width(s)}, call.options.dtype(type)));
      args.arrived[s] = out.arrived[s].data_ptr();
    }
    if (want_initial) {
      out.initial.push_back(buffers.empty({layout.batch, call.width(s)}, call.options));
      args.grad_initial[s] = out.initial[s].data_ptr();
    }
  }
  if (layout.batch > 0) buffers.verify(call.cell->backward[static_cast<int>(call.format)](args));
  if (want_initial && !args.initial_product) {
    Tensor first = layout.rows == layout.batch ? out.initial[0] : out.initial[0].narrow(0, 0, layout.rows);
    products::add_of_input(first, whole_drh(call, out), call.first_product(b.w_hh));
  }
  for (Tensor& g : out.initial) g = layout.unsort(g);
  return out;
}

Tensors joined(const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final) {
  Tensors grads{grad_y.value_or(Tensor())};
  for (const OptionalTensor& g : grad_final) grads.push_back(g.value_or(Tensor()));
  return grads;
}

Tensor copy_of(const Tensor& t, at::IntArrayRef sizes) {
  Tensor copy = products::empty(sizes, t);
  memcpy(copy.mutable_data_ptr(), t.const_data_ptr(), copy.nbytes());
  return copy;
}

// h before each row's step, (N, P): what R was multiplied with. Undefined where it is zero throughout.
Tensor hidden_before(const Backward& b, bool reverse) {
  const Layout& layout = b.call.layout;
  const int64_t N = layout.rows, B = layout.batch;
  // Row N + i of `source` is the initial state of row i.
  const Tensor first = b.states.empty() ? at::zeros({B, b.call.projected}, b.call.options) : b.states[0];
  const Tensor source = at::cat({b.y, first});
  Tensor index = at::empty({N}, at::kLong);
  int64_t* to = index.data_ptr<int64_t>();
  const bool* reset = layout.reset.defined() ? layout.reset.const_data_ptr<bool>() : nullptr;
  for (int64_t t = 0; t < layout.steps; ++t) {
    const int64_t before = reverse ? t + 1 : t - 1;
    const bool inside = before >= 0 && before < layout.steps;
    for (int64_t i = 0; i < layout.counts[t]; ++i) {
      const int64_t row = layout.offsets[t] + i;
      const bool follows = inside && i < layout.counts[before] &&
                           !(reset != nullptr && reset[reverse ? layout.offsets[before] + i : row]);
      to[row] = follows ? layout.offsets[before] + i : N + i;
    }
  }
  return source.index_select(0, index);
}

// Adds drhᵀ·0, the share of the steps that start from no initial state: NaN where drh is not finite, as zero times
// infinity is.
void add_of_zeros(Tensor& out, const Tensor& drh) {
  if (!all_finite(drh)) products::add_of_weight(out, drh, at::zeros({drh.size(0), out.size(1)}, drh.options()));
}

// Some rows of ∂L/∂w_hh = Σ drhᵀ·h: those of the gates whose drh is given, (N, ·), into `out` (·, P). `before`:
// h before each row's step, where it takes more than a shift by one step to find.
void recurrent_gradient_into(Tensor out, const Backward& b, const Tensor& drh, const Tensor& before, bool reverse) {
  const Layout& layout = b.call.layout;
  if (before.defined()) return products::of_weight_into(out, drh, before);
  const int64_t B = layout.batch, rest = layout.rows - B;
  if (rest == 0) {
    if (!b.states.empty()) return products::of_weight_into(out, drh, b.states[0]);
    memset(out.mutable_data_ptr(), 0, out.nbytes());
    return add_of_zeros(out, drh);
  }
  products::of_weight_into(out, drh.narrow(0, reverse ? 0 : B, rest), b.y.narrow(0, reverse ? B : 0, rest));
  const Tensor first = drh.narrow(0, reverse ? rest : 0, B);  // the step that starts from the initial state
  if (b.states.empty()) return add_of_zeros(out, first);
  products::add_of_weight(out, first, b.states[0]);
}

Tensor recurrent_gradient(const Backward& b, const Gradients& g, bool reverse) {
  constexpr int64_t kFew = 64;  // rows that are put together sooner than multiplied in two parts
  const Layout& layout = b.call.layout;
  Tensor out = products::empty(b.w_hh.sizes(), b.w_hh);
  const Tensor before = layout.plain() ? Tensor() : hidden_before(b, reverse);
  const int64_t first = b.call.first_width(), width = b.call.recurrent_width();
  const int64_t rest = g.drh.size(1), split = width - rest;
  if (const int64_t parameters = b.call.cell->parameters; parameters > 0) {
    const Tensor sums = g.dparameters.unflatten(1, {parameters, b.call.hidden}).sum(0);
    out.narrow(0, width, parameters).copy_(sums);
  }
  if (width == 0) return out;
  if (first < width) {
    const Tensor drh = whole_drh(b.call, g);
    const int vectors = b.call.cell->vectors;
    const Tensor all = b.reserve[3].reshape({-1, vectors * b.call.hidden}).narrow(0, 0, layout.rows);
    for (int64_t k = 0, from = first; k < vectors; ++k) {
      const int64_t rows = b.call.cell->vector_blocks[k] * b.call.hidden;
      Tensor part = out.narrow(0, from, rows);
      products::of_weight_into(part, drh.narrow(1, from, rows), all.narrow(1, k * b.call.hidden, b.call.hidden));
      from += rows;
    }
    if (first > 0) recurrent_gradient_into(out.narrow(0, 0, first), b, drh.narrow(1, 0, first), before, reverse);
  } else if (rest == 0 || split == 0 || layout.rows <= kFew) {
    recurrent_gradient_into(b.call.first_product(out), b, whole_drh(b.call, g), before, reverse);
  } else {
    recurrent_gradient_into(out.narrow(0, 0, split), b, g.da.narrow(1, 0, split), before, reverse);
    recurrent_gradient_into(out.narrow(0, split, rest), b, g.drh, before, reverse);
  }
  return out;
}

void fill_gradients(Tensors& gradients, const Tensor& w_hh) {
  for (Tensor& t : gradients) {
    if (!t.defined()) t = at::empty({0}, w_hh.options().requires_grad(false));
  }
}

// Σ over rows; a single row needs no reduction.
Tensor sum_rows(const Tensor& t) { return t.size(0) == 1 ? copy_of(t, t.sizes().slice(1)) : t.sum(0); }

// ∂L/∂b_hh = Σ drh. `input`: ∂L/∂b_ih if it is known; never one tensor for two gradients.
Tensor bias_gradient(const Call& call, const Gradients& g, const Tensor& input) {
  const int64_t rest = g.drh.size(1), split = call.recurrent_width() - rest;
  if (split == 0 && call.recurrent_width() == 0) return products::empty({0}, g.da);
  if (split == 0) return sum_rows(g.drh);
  if (split + rest < call.gate_width()) return at::cat({sum_rows(g.da.narrow(1, 0, split)), sum_rows(g.drh)});
  Tensor out = input.defined() ? copy_of(input, input.sizes()) : sum_rows(g.da);
  if (rest > 0) out.narrow(0, split, rest).copy_(sum_rows(g.drh));
  return out;
}

// h before its projection, (N, H). `last_unused`: zeros at the last step, whose gradient is zero but whose h may be
// NaN.
Tensor unprojected(const Backward& b, bool last_unused, bool reverse) {
  const Layout& layout = b.call.layout;
  const Tensor rows = b.reserve[3].reshape({-1, b.call.hidden}).narrow(0, 0, layout.rows);
  if (!last_unused) return rows;
  const int64_t last = reverse ? 0 : layout.steps - 1;
  Tensor copy = rows.clone();
  copy.narrow(0, layout.offsets[last], layout.counts[last]).zero_();
  return copy;
}

}  // namespace

Tensors backward_layer(c10::string_view cell, at::TensorList grads, const Tensor& x, const OptionalTensor& w_ih,
                       const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial, const Tensor& y,
                       at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs, Tensors* flow) {
  const Inside inside;
  const Backward b(cell, w_hh, w_hr, initial, y, reserve, batch_sizes, lengths, reset);
  const int64_t width = w_ih ? w_ih->size(-1) : 0;
  if (w_ih && (needs[0] || needs[1])) b.call.check(*w_ih, {b.call.gate_width(), width}, "w_ih");
  if (w_ih && needs[1]) b.check_rows(x, width, "x");
  const Modest modest({b.call.layout.rows, b.call.gate_width(), width + b.call.projected, 2});
  Gradients g = run_backward(b, grads, reverse, needs[6], false, flow != nullptr);
  const Layout& layout = b.call.layout;
  if (flow != nullptr) {
    flow->push_back(layout.scatter(whole_drh(b.call, g).clone()));  // no tensor twice among an operator's outputs
    for (const Tensor& t : g.arrived) flow->push_back(layout.scatter(t));
  }
  Tensors out(6);
  if (needs[0]) out[0] = layout.scatter(w_ih ? products::of_input(g.da, present(*w_ih)) : g.da);
  if (needs[1] && w_ih) out[1] = products::of_weight(g.da, layout.gather(x));
  if (needs[2]) out[2] = recurrent_gradient(b, g, reverse);
  if (needs[3]) out[3] = sum_rows(g.da);
  if (needs[4]) out[4] = bias_gradient(b.call, g, out[3]);
  if (needs[5] && w_hr) out[5] = products::of_weight(g.dh, unprojected(b, hidden_unused(grads), reverse));
  for (Tensor& t : g.initial) out.push_back(std::move(t));
  return out;
}

// sequence_backward: the time loop alone. ∂L/∂wx (N, G·H), ∂L/∂rh (N, G·H; empty if it is the same), gradients of the
// initial states (if wanted), ∂L/∂h_t in the caller's shape (if wanted, else empty).
std::tuple<Tensor, Tensor, Tensors, Tensor> sequence_backward(
    c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
    const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial, const Tensor& y, at::TensorList reserve,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset, bool reverse,
    bool want_initial, bool want_dh) {
  const Inside inside;
  const Backward b(cell, w_hh, w_hr, initial, y, reserve, batch_sizes, lengths, reset);
  const Gradients g = run_backward(b, joined(grad_y, grad_final), reverse, want_initial, want_dh);
  const Layout& layout = b.call.layout;
  const bool split = g.drh.size(1) > 0;
  return {layout.scatter(g.da), split ? layout.scatter(whole_drh(b.call, g)) : at::empty({0}, b.call.options),
          g.initial, want_dh ? layout.scatter(g.dh) : at::empty({0}, b.call.options)};
}

// layer_backward: gradients of x, w_ih, w_hh, b_ih, b_hh, w_hr as `needs` asks (empty tensors for the rest), and then
// of the initial states if needs[6].
Tensors layer_backward(c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
                       const Tensor& x, const OptionalTensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
                       at::TensorList initial, const Tensor& y, at::TensorList reserve,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
                       bool reverse, std::array<bool, 7> needs) {
  const Tensors grads = joined(grad_y, grad_final);
  Tensors out = backward_layer(cell, grads, x, w_ih, w_hh, w_hr, initial, y, reserve, batch_sizes, lengths, reset,
                               reverse, needs);
  fill_gradients(out, w_hh);
  return out;
}

// layer_backward_flow: what layer_backward returns; then ∂L/∂rh (N, R·H), in the caller's shape; then of each state, in
// the format that is computed in, the gradient that came to it from later steps, (N, P or H): without that of the
// output of its own step, and for rows' last steps that of the final state.
Tensors layer_backward_flow(c10::string_view cell, const OptionalTensor& grad_y,
                            const c10::List<OptionalTensor>& grad_final, const Tensor& x, const OptionalTensor& w_ih,
                            const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial, const Tensor& y,
                            at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                            const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs) {
  Tensors flow;
  Tensors out = backward_layer(cell, joined(grad_y, grad_final), x, w_ih, w_hh, w_hr, initial, y, reserve, batch_sizes,
                               lengths, reset, reverse, needs, &flow);
  fill_gradients(out, w_hh);
  out.insert(out.end(), flow.begin(), flow.end());
  return out;
}

}  // namespace fastrnn
