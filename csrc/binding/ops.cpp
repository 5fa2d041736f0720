#include "binding/ops.h"

#include <torch/library.h>

#include "binding/buffers.h"
#include "binding/modest.h"
#include "binding/products.h"

namespace fastrnn {

namespace {

// R·h + b_hh of a sequence's only step: no use packing weights that are read once. Without initial states all rows are
// one row's; it is multiplied all the same, as zero times an infinite weight is NaN.
Tensor only_product(const Call& call, const Tensors& states, const Weights& w) {
  const Tensor matrix = call.first_product(w.w_hh);
  if (!states.empty()) return products::forward(states[0], matrix, w.b_hh);
  const Tensor row = products::forward(at::zeros({1, call.projected}, call.options), matrix, w.b_hh);
  return call.layout.batch == 1 ? row : row.expand({call.layout.batch, row.size(1)}).contiguous();
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
  const Modest modest({layout.rows, GH, (w_ih ? w_ih->size(-1) : 0) + P});
  const int G = call.cell->gates, S = call.cell->states, K = call.cell->saved;
  const Weights w{w_ih && w_ih->_is_zerotensor() ? present(*w_ih) : w_ih, dense(w_hh), dense_if(b_ih), dense_if(b_hh),
                  dense_if(w_hr)};
  std::vector<int64_t> x_sizes = layout.shape;
  x_sizes.push_back(w_ih ? w_ih->size(-1) : GH);
  if (w_ih) call.check(*w_ih, {GH, w_ih->size(-1)}, "w_ih");
  if (b_ih) call.check(*b_ih, {GH}, "b_ih");
  if (b_hh) call.check(*b_hh, {call.recurrent_width()}, "b_hh");
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
  const Tensor gates = input_product(call, x, w.w_ih, w.b_ih, training);
  const Tensor extra = saved(K > G, (K - G) * H, type);
  const Tensor cells = saved(S > 1 || call.cell->totals > 0, (S - 1) * H + call.cell->totals, compute_type(type));
  const Tensor unprojected =
      saved(w_hr.has_value() || call.cell->vectors > 0, (w_hr ? 1 : call.cell->vectors) * H, type);
  const Tensor y = buffers.empty({layout.rows, P}, call.options);
  const bool at_once = layout.steps == 1 && !call.cell->staged && call.cell->second == 0 && call.cell->recurrent > 0;
  const Tensor rh = at_once ? only_product(call, states, w) : Tensor();

  ForwardArgs args{};
  args.seq = layout.sequence(H, P, reverse);
  args.w_hh = w.w_hh.const_data_ptr();
  args.b_ih = adds_bias(call, w_ih, b_ih) ? nullptr : data_of(w.b_ih);
  args.b_hh = rh.defined() ? nullptr : data_of(w.b_hh);
  args.w_hr = data_of(w.w_hr);
  args.parameters = call.parameters_of(w.w_hh);
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
// gates (…, G·H), extra (…, (K-G)·H), cells (…, (S-1)·H + sums), unprojected (…, vectors·H), … the leading dimensions
// of x. With lengths, only the first N rows of them are used. What is not kept has shape (0, 0).
std::tuple<Tensor, Tensors, Tensors> sequence_forward(c10::string_view cell, const Tensor& x,
                                                      const OptionalTensor& w_ih, const Tensor& w_hh,
                                                      const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                                      const OptionalTensor& w_hr, OptionalTensors initial,
                                                      const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                                      const OptionalTensor& reset, bool reverse, bool training) {
  auto out = forward_layer(cell, x, w_ih, w_hh, b_ih, b_hh, w_hr, states_of(initial), batch_sizes, lengths, reset,
                           reverse, training);
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

}  // namespace fastrnn

TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "sequence_forward(str cell, Tensor x, Tensor? w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor[]? states, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, bool training) "
      "-> (Tensor, Tensor[], Tensor[])");
  m.def(
      "sequence_backward(str cell, Tensor? grad_y, Tensor?[] grad_final, Tensor w_hh, Tensor? w_hr, Tensor[]? states, "
      "Tensor y, Tensor[] reserve, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, "
      "bool want_initial, bool want_dh) -> (Tensor, Tensor, Tensor[], Tensor)");
  m.def(
      "layer_backward(str cell, Tensor? grad_y, Tensor?[] grad_final, Tensor x, Tensor? w_ih, Tensor w_hh, "
      "Tensor? w_hr, Tensor[]? states, Tensor y, Tensor[] reserve, Tensor? batch_sizes, Tensor? lengths, "
      "Tensor? reset, bool reverse, bool[7] needs) -> Tensor[]");
  m.def(
      "layer_backward_flow(str cell, Tensor? grad_y, Tensor?[] grad_final, Tensor x, Tensor? w_ih, Tensor w_hh, "
      "Tensor? w_hr, Tensor[]? states, Tensor y, Tensor[] reserve, Tensor? batch_sizes, Tensor? lengths, "
      "Tensor? reset, bool reverse, bool[7] needs) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("sequence_forward", &fastrnn::sequence_forward);
  m.impl("sequence_backward", &fastrnn::sequence_backward);
  m.impl("layer_backward", &fastrnn::layer_backward);
  m.impl("layer_backward_flow", &fastrnn::layer_backward_flow);
}
