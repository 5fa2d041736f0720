#include "cuda_binding/choice.h"
#include "cuda_binding/inside.h"
#include "cuda_binding/ops.h"
#include "cuda_binding/products.h"
#include "cuda_binding/stepwise.h"

namespace fastrnn::cuda {

namespace {

// W·x + b_ih for all rows, in memory that the kernels write what they save to, if there is `training`.
Tensor input_product(const Call& call, const Tensor& x, const OptionalTensor& w_ih, const OptionalTensor& b_ih,
                     bool training) {
  if (w_ih) {
    Tensor gates = fresh({call.layout.rows, call.gate_width()}, call.options);
    products::forward_into(gates, call.layout.gather_without_padding(x), *w_ih, b_ih);
    return gates;
  }
  const Tensor rows = call.layout.gather(x);
  if (b_ih) return rows.add(*b_ih);
  return training && rows.is_alias_of(x) ? rows.clone() : rows;
}

struct Kept {
  Tensor extra, cells, unprojected;

  // Rows of padding are not written; what is kept is to be a function of the inputs all the same.
  Kept(const Call& call, bool training) {
    const int G = call.cell->gates, S = call.cell->states, K = call.cell->saved;
    const auto memory = [&](bool wanted, int64_t width, at::ScalarType type) {
      const std::array<int64_t, 2> sizes{call.layout.rows, width * call.hidden};
      if (!wanted || !training) return Tensor();
      const auto options = call.options.dtype(type);
      return call.layout.lengths.defined() ? at::zeros(sizes, options) : fresh(sizes, options);
    };
    const auto type = c10::typeMetaToScalarType(call.options.dtype());
    extra = memory(K > G, K - G, type);
    cells = memory(S > 1, S - 1, call.compute_type());
    unprojected = memory(call.two_products(), 1, type);
  }

  // As the operator returns it: what is not kept has shape (0, 0).
  Tensors reserve(const Call& call, const Tensor& gates) const {
    Tensors out;
    for (const Tensor& t : {call.cell->saved > 0 ? gates : Tensor(), extra, cells, unprojected}) {
      const auto options = out.size() == 2 ? call.options.dtype(call.compute_type()) : call.options;
      out.push_back(t.defined() ? call.layout.shaped(t) : at::empty({0, 0}, options));
    }
    return out;
  }
};

}  // namespace

std::tuple<Tensor, Tensors, Tensors> sequence_forward(c10::string_view cell, const Tensor& x,
                                                      const OptionalTensor& w_ih, const Tensor& given_w_hh,
                                                      const OptionalTensor& b_ih, const OptionalTensor& given_b_hh,
                                                      const OptionalTensor& given_w_hr, OptionalTensors given_states,
                                                      const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                                      const OptionalTensor& reset, bool reverse, bool training) {
  const Inside inside(given_w_hh);
  const at::TensorList initial = states_of(given_states);
  const Call call(cell, x, given_w_hh, given_w_hr, batch_sizes, lengths, reset);
  const Layout& layout = call.layout;
  std::vector<int64_t> x_sizes = layout.shape;
  x_sizes.push_back(w_ih ? w_ih->size(-1) : call.gate_width());
  if (w_ih) call.check(*w_ih, {call.gate_width(), w_ih->size(-1)}, "w_ih");
  if (b_ih) call.check(*b_ih, {call.gate_width()}, "b_ih");
  if (given_b_hh) call.check(*given_b_hh, {call.recurrent_width()}, "b_hh");
  call.check(x, x_sizes, "x");
  call.check_states(initial, "states");

  const Tensor w_hh = dense(given_w_hh);
  const OptionalTensor b_hh = dense(given_b_hh), w_hr = dense(given_w_hr);
  const Tensor gates = input_product(call, x, w_ih, b_ih, training);
  const Kept kept(call, training);
  const Tensor y = fresh({layout.rows, call.projected}, call.options);
  ForwardArgs args{};
  args.rows = layout.describe(reverse);
  args.hidden = call.hidden;
  args.projected = call.projected;
  args.w_hh = data_of(w_hh);
  args.b_hh = data_of(b_hh);
  args.parameters = call.parameters_of(w_hh);
  args.gates = writable(gates);
  args.extra = writable(kept.extra);
  args.cells = writable(kept.cells);
  args.unprojected = writable(kept.unprojected);
  args.y = writable(y);
  args.training = training;
  Tensors states, finals;
  for (int s = 0; s < call.cell->states; ++s) {
    if (!initial.empty()) args.initial[s] = data_of(states.emplace_back(dense(initial[s])));
    args.final_states[s] = writable(finals.emplace_back(fresh({layout.batch, call.width(s)}, call.options)));
  }
  if (layout.batch > 0 && !run_persistent(call, args, call.kernels->forward, false)) {
    run_stepwise(call, args, w_hh, w_hr);
  }
  return {layout.shaped(y), std::move(finals), training ? kept.reserve(call, gates) : Tensors()};
}

}  // namespace fastrnn::cuda
