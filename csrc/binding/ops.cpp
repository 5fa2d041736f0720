#include "binding/ops.h"

#include <string.h>
#include <torch/library.h>

#include "binding/buffers.h"
#include "binding/modest.h"
#include "binding/products.h"

namespace fastrnn {

namespace {

// What an operator does is its own affair: autocast has done its work before it is called (inside, it would change the
// dtype of single products), and its outputs must not be known as views of the memory they were made in.
struct Inside {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  at::AutoDispatchBelowADInplaceOrView no_views;
};

const void* data_of(const OptionalTensor& t) { return t && t->defined() ? t->const_data_ptr() : nullptr; }
OptionalTensor dense_if(const OptionalTensor& t) { return t ? OptionalTensor(dense(*t)) : t; }

// R·h + b_hh of a sequence's only step: no use packing weights that are read once.
Tensor only_product(const Call& call, const Tensors& states, const Weights& w) {
  if (!states.empty()) return products::forward(states[0], w.w_hh, w.b_hh);
  Tensor rows = products::empty({call.layout.batch, call.gate_width()}, w.w_hh);
  if (!w.b_hh) {
    memset(rows.mutable_data_ptr(), 0, rows.nbytes());
    return rows;
  }
  for (int64_t b = 0; b < call.layout.batch; ++b) {
    memcpy(static_cast<char*>(rows.mutable_data_ptr()) + b * w.b_hh->nbytes(), w.b_hh->const_data_ptr(),
           w.b_hh->nbytes());
  }
  return rows;
}

// Whether the library adds b_ih: a 16-bit W·x must not be rounded before the bias, with which it may cancel. Otherwise
// the kernel does, which saves a pass over W·x.
bool adds_bias(const Call& call, const OptionalTensor& w_ih, const OptionalTensor& b_ih) {
  return w_ih && b_ih && (call.format == Format::kBFloat16 || call.format == Format::kFloat16);
}

// W·x (and b_ih, see above) for all rows, in memory that the kernels may write to.
Tensor input_product(const Call& call, const Tensor& x, const OptionalTensor& w_ih, const OptionalTensor& b_ih,
                     bool training) {
  const OptionalTensor bias = adds_bias(call, w_ih, b_ih) ? b_ih : OptionalTensor();
  const Tensor rows = call.layout.gather(x);
  const bool ragged = call.layout.capacity() > call.layout.rows;
  if (!ragged && w_ih) return products::forward(rows, *w_ih, bias);
  if (!ragged && (!training || call.layout.index.defined())) return rows;
  Tensor gates = at::empty({call.layout.capacity(), call.gate_width()}, call.options);
  Tensor used = gates.narrow(0, 0, call.layout.rows);
  if (w_ih) {
    products::forward_into(used, rows, *w_ih, bias);
  } else {
    used.copy_(rows);
  }
  return gates;
}

}  // namespace

std::tuple<Tensor, Tensors, Tensors> forward_layer(c10::string_view cell, const Tensor& x, const OptionalTensor& w_ih,
                                                   const Tensor& w_hh, const OptionalTensor& b_ih,
                                                   const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                                                   at::TensorList initial, const OptionalTensor& batch_sizes,
                                                   const OptionalTensor& lengths, const OptionalTensor& reset,
                                                   bool reverse, bool training) {
  const Inside inside;
  const Call call(cell, x, w_hh, w_hr, batch_sizes, lengths, reset);
  const Layout& layout = call.layout;
  const int64_t GH = call.gate_width(), H = call.hidden, P = call.projected;
  const Modest modest(layout.rows * GH * ((w_ih ? w_ih->size(-1) : 0) + P));
  const int G = call.cell->gates, S = call.cell->states, K = call.cell->saved;
  const Weights w{w_ih, dense(w_hh), dense_if(b_ih), dense_if(b_hh), dense_if(w_hr)};
  std::vector<int64_t> x_sizes = layout.shape;
  x_sizes.push_back(w_ih ? w_ih->size(-1) : GH);
  if (w_ih) call.check(*w_ih, {GH, w_ih->size(-1)}, "w_ih");
  if (b_ih) call.check(*b_ih, {GH}, "b_ih");
  if (b_hh) call.check(*b_hh, {GH}, "b_hh");
  call.check(x, x_sizes, "x");
  call.check_states(initial, "states");

  Tensors states;
  for (const Tensor& s : initial) states.push_back(layout.sort(s));
  Buffers buffers;
  const auto saved = [&](bool wanted, int64_t width, at::ScalarType type) {
    if (!wanted || !training) return Tensor();
    return buffers.empty({layout.capacity(), width}, call.options.dtype(type));
  };
  const auto type = w_hh.scalar_type();
  const Tensor gates = input_product(call, x, w_ih, b_ih, training);
  const Tensor extra = saved(K > G, (K - G) * H, type);
  const Tensor cells = saved(S > 1, (S - 1) * H, compute_type(type));
  const Tensor unprojected = saved(w_hr.has_value(), H, type);
  const Tensor y = buffers.empty({layout.rows, P}, call.options);
  const Tensor rh = layout.steps == 1 ? only_product(call, states, w) : Tensor();

  ForwardArgs args{};
  args.seq = layout.sequence(H, P, reverse);
  args.w_hh = w.w_hh.const_data_ptr();
  args.b_ih = adds_bias(call, w_ih, b_ih) ? nullptr : data_of(w.b_ih);
  args.b_hh = rh.defined() ? nullptr : data_of(w.b_hh);
  args.w_hr = data_of(w.w_hr);
  args.rh = rh.defined() ? rh.const_data_ptr() : nullptr;
  args.gates = gates.data_ptr();
  args.extra = extra.defined() ? extra.data_ptr() : nullptr;
  args.cells = cells.defined() ? cells.data_ptr() : nullptr;
  args.unprojected = unprojected.defined() ? unprojected.data_ptr() : nullptr;
  args.y = y.data_ptr();
  args.training = training;
  Tensors finals;
  for (int s = 0; s < S; ++s) {
    finals.push_back(buffers.empty({layout.batch, call.width(s)}, call.options));
    args.initial[s] = states.empty() ? nullptr : states[s].const_data_ptr();
    args.final_states[s] = finals[s].data_ptr();
  }
  if (layout.batch > 0) buffers.verify(call.cell->forward[static_cast<int>(call.format)](args));
  for (Tensor& f : finals) f = layout.unsort(f);
  Tensors reserve;
  if (training) {
    for (const Tensor& t : {K > 0 ? gates : Tensor(), extra, cells, unprojected}) {
      // A function of its inputs alone, also where nobody looks.
      if (t.defined() && t.size(0) > layout.rows) t.narrow(0, layout.rows, t.size(0) - layout.rows).zero_();
      reserve.push_back(t.defined() ? layout.shaped(t) : t);
    }
  }
  return {layout.scatter(y), std::move(finals), std::move(reserve)};
}

// sequence_forward: y (T, B, P) or (N, P); final states (B, ·); and, if training, what backward needs:
// gates (…, G·H), extra (…, (K-G)·H), cells (…, (S-1)·H), unprojected (…, H), … the leading dimensions of x. With
// lengths, only the first N rows of them are used. What is not kept has shape (0, 0).
std::tuple<Tensor, Tensors, Tensors> sequence_forward(c10::string_view cell, const Tensor& x,
                                                      const OptionalTensor& w_ih, const Tensor& w_hh,
                                                      const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                                      const OptionalTensor& w_hr, at::TensorList initial,
                                                      const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                                      const OptionalTensor& reset, bool reverse, bool training) {
  auto out =
      forward_layer(cell, x, w_ih, w_hh, b_ih, b_hh, w_hr, initial, batch_sizes, lengths, reset, reverse, training);
  Tensors& reserve = std::get<2>(out);
  fill_reserve(reserve, w_hh);
  return out;
}

void fill_reserve(Tensors& reserve, const Tensor& w_hh) {
  for (size_t k = 0; k < reserve.size(); ++k) {
    const auto type = k == 2 ? compute_type(w_hh.scalar_type()) : w_hh.scalar_type();
    if (!reserve[k].defined()) reserve[k] = at::empty({0, 0}, w_hh.options().dtype(type).requires_grad(false));
  }
}

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
    call.check_states(initial, "states");
    TORCH_CHECK(reserve.size() == 4, "reserve: expected what a forward pass with training=True returned, got ",
                reserve.size(), " tensors");
    check_reserve();
    for (const Tensor& s : initial) states.push_back(call.layout.sort(s));
  }

  void check_reserve() {
    const CellKernels& cell = *call.cell;
    const int64_t H = call.hidden;
    const std::array<int64_t, 4> widths{cell.saved > 0 ? cell.gates * H : 0, std::max(0, cell.saved - cell.gates) * H,
                                        (cell.states - 1) * H, w_hr ? H : 0};
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
  Tensor da;        // (N, G·H)
  Tensor drh;       // (N, (G - split_from)·H): where it differs from da
  Tensors initial;  // (B, ·), in the caller's order; empty if not wanted
  Tensor dh;        // (N, P) or undefined
};

// ∂L/∂rh, (N, G·H).
Tensor whole_drh(const Call& call, const Gradients& g) {
  const int64_t rest = g.drh.size(1), split = call.gate_width() - rest;
  if (rest == 0) return g.da;
  Tensor whole = products::empty(g.da.sizes(), g.da);
  const auto bytes = [](const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); };
  const size_t size = g.da.itemsize(), row = static_cast<size_t>(call.gate_width()) * size;
  const size_t front = static_cast<size_t>(split) * size, back = static_cast<size_t>(rest) * size;
  for (size_t n = 0; n < static_cast<size_t>(g.da.size(0)); ++n) {
    memcpy(bytes(whole) + n * row, bytes(g.da) + n * row, front);
    memcpy(bytes(whole) + n * row + front, bytes(g.drh) + n * back, back);
  }
  return whole;
}

// `grads`: of y, then of the final states, undefined where there is none.
Gradients run_backward(const Backward& b, at::TensorList grads, bool reverse, bool want_initial, bool want_dh) {
  const Call& call = b.call;
  const Layout& layout = call.layout;
  const int S = call.cell->states;
  TORCH_CHECK(grads.size() == 1 || static_cast<int>(grads.size()) == S + 1, "grad_final: expected ", S,
              " gradients, got ", grads.size() - 1);
  Buffers buffers;
  Gradients out;
  const std::vector<int64_t> wide{layout.rows, call.gate_width()};
  out.da = buffers.empty(wide, call.options);
  out.drh = buffers.empty({layout.rows, (call.cell->gates - call.cell->split_from) * call.hidden}, call.options);
  if (want_dh || b.w_hr) out.dh = buffers.empty({layout.rows, call.projected}, call.options);
  Tensor gy;
  if (grads[0].defined()) {
    std::vector<int64_t> sizes = layout.shape;
    sizes.push_back(call.projected);
    call.check(grads[0], sizes, "grad_y");
    gy = layout.gather(grads[0]);
  }

  BackwardArgs args{};
  args.seq = layout.sequence(call.hidden, call.projected, reverse);
  args.w_hh = b.w_hh.const_data_ptr();
  args.w_hr = data_of(b.w_hr);
  args.gates = data_of(b.reserve[0]);
  args.extra = data_of(b.reserve[1]);
  args.cells = data_of(b.reserve[2]);
  args.y = b.y.const_data_ptr();
  args.grad_y = gy.defined() ? gy.const_data_ptr() : nullptr;
  args.da = out.da.data_ptr();
  args.drh = out.drh.data_ptr();
  args.dh = out.dh.defined() ? out.dh.data_ptr() : nullptr;
  args.initial_product = layout.steps > 1;
  Tensors finals(S);
  for (int s = 0; s < S; ++s) {
    args.initial[s] = b.states.empty() ? nullptr : b.states[s].const_data_ptr();
    if (grads.size() > 1 && grads[s + 1].defined()) {
      call.check(grads[s + 1], {layout.batch, call.width(s)}, "grad_final");
      finals[s] = layout.sort(grads[s + 1]);
      args.grad_final[s] = finals[s].const_data_ptr();
    }
    if (want_initial) {
      out.initial.push_back(buffers.empty({layout.batch, call.width(s)}, call.options));
      args.grad_initial[s] = out.initial[s].data_ptr();
    }
  }
  if (layout.batch > 0) buffers.verify(call.cell->backward[static_cast<int>(call.format)](args));
  if (want_initial && !args.initial_product) {
    Tensor first = layout.rows == layout.batch ? out.initial[0] : out.initial[0].narrow(0, 0, layout.rows);
    products::add_of_input(first, whole_drh(call, out), b.w_hh);
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

// Some rows of ∂L/∂w_hh = Σ drhᵀ·h: those of the gates whose drh is given, (N, ·), into `out` (·, P). `before`:
// h before each row's step, where it takes more than a shift by one step to find.
void recurrent_gradient_into(Tensor out, const Backward& b, const Tensor& drh, const Tensor& before, bool reverse) {
  const Layout& layout = b.call.layout;
  if (before.defined()) return products::of_weight_into(out, drh, before);
  const int64_t B = layout.batch, rest = layout.rows - B;
  if (rest == 0) {
    if (!b.states.empty()) return products::of_weight_into(out, drh, b.states[0]);
    memset(out.mutable_data_ptr(), 0, out.nbytes());
    return;
  }
  products::of_weight_into(out, drh.narrow(0, reverse ? 0 : B, rest), b.y.narrow(0, reverse ? B : 0, rest));
  if (b.states.empty()) return;
  const int64_t first = reverse ? rest : 0;  // the step that starts from the initial state
  products::add_of_weight(out, drh.narrow(0, first, B), b.states[0]);
}

Tensor recurrent_gradient(const Backward& b, const Gradients& g, bool reverse) {
  constexpr int64_t kFew = 64;  // rows that are put together sooner than multiplied in two parts
  const Layout& layout = b.call.layout;
  Tensor out = products::empty(b.w_hh.sizes(), b.w_hh);
  const Tensor before = layout.plain() ? Tensor() : hidden_before(b, reverse);
  const int64_t rest = g.drh.size(1), split = b.call.gate_width() - rest;
  if (rest == 0 || layout.rows <= kFew) {
    recurrent_gradient_into(out, b, whole_drh(b.call, g), before, reverse);
  } else {
    recurrent_gradient_into(out.narrow(0, 0, split), b, g.da.narrow(1, 0, split), before, reverse);
    recurrent_gradient_into(out.narrow(0, split, rest), b, g.drh, before, reverse);
  }
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
  const bool split = b.call.cell->split_from < b.call.cell->gates;
  return {layout.scatter(g.da), split ? layout.scatter(whole_drh(b.call, g)) : at::empty({0}, b.call.options),
          g.initial, want_dh ? layout.scatter(g.dh) : at::empty({0}, b.call.options)};
}

// Σ over rows; a single row needs no reduction.
Tensor sum_rows(const Tensor& t) { return t.size(0) == 1 ? copy_of(t, t.sizes().slice(1)) : t.sum(0); }

// ∂L/∂b_hh = Σ drh. `input`: ∂L/∂b_ih if it is known; never one tensor for two gradients.
Tensor bias_gradient(const Call& call, const Gradients& g, const Tensor& input) {
  const int64_t rest = g.drh.size(1), split = call.gate_width() - rest;
  Tensor out = input.defined() ? copy_of(input, input.sizes()) : sum_rows(g.da);
  if (rest > 0) out.narrow(0, split, rest).copy_(sum_rows(g.drh));
  return out;
}

}  // namespace

Tensors backward_layer(c10::string_view cell, at::TensorList grads, const Tensor& x, const OptionalTensor& w_ih,
                       const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial, const Tensor& y,
                       at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs) {
  const Inside inside;
  const Backward b(cell, w_hh, w_hr, initial, y, reserve, batch_sizes, lengths, reset);
  const Modest modest(2 * b.call.layout.rows * b.call.gate_width() * (x.size(-1) + b.call.projected));
  Gradients g = run_backward(b, grads, reverse, needs[6], false);
  const Layout& layout = b.call.layout;
  Tensors out(6);
  if (needs[0]) out[0] = layout.scatter(w_ih ? products::of_input(g.da, *w_ih) : g.da);
  if (needs[1] && w_ih) out[1] = products::of_weight(g.da, layout.gather(x));
  if (needs[2]) out[2] = recurrent_gradient(b, g, reverse);
  if (needs[3]) out[3] = sum_rows(g.da);
  if (needs[4]) out[4] = bias_gradient(b.call, g, out[3]);
  if (needs[5] && w_hr)
    out[5] = products::of_weight(g.dh, b.reserve[3].reshape({-1, b.call.hidden}).narrow(0, 0, layout.rows));
  for (Tensor& t : g.initial) out.push_back(std::move(t));
  return out;
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
  for (Tensor& t : out) {
    if (!t.defined()) t = at::empty({0}, w_hh.options().requires_grad(false));
  }
  return out;
}

}  // namespace fastrnn

TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "sequence_forward(str cell, Tensor x, Tensor? w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor[] states, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, bool training) "
      "-> (Tensor, Tensor[], Tensor[])");
  m.def(
      "sequence_backward(str cell, Tensor? grad_y, Tensor?[] grad_final, Tensor w_hh, Tensor? w_hr, Tensor[] states, "
      "Tensor y, Tensor[] reserve, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, "
      "bool want_initial, bool want_dh) -> (Tensor, Tensor, Tensor[], Tensor)");
  m.def(
      "layer_backward(str cell, Tensor? grad_y, Tensor?[] grad_final, Tensor x, Tensor? w_ih, Tensor w_hh, "
      "Tensor? w_hr, Tensor[] states, Tensor y, Tensor[] reserve, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, "
      "bool reverse, bool[7] needs) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("sequence_forward", &fastrnn::sequence_forward);
  m.impl("sequence_backward", &fastrnn::sequence_backward);
  m.impl("layer_backward", &fastrnn::layer_backward);
}
