#include "python/eager.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "cpu/dispatch.h"
#include "cpu/plan.h"
#include "cpu/team.h"
#include "ops/cpu/device.h"
#include "ops/operators.h"
#include "python/node.h"

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

// Converts to the operators' layout, without recording in autograd.
LayerCall laid_out(LayerCall call, const CallerLayout& caller) {
  if (caller.plain()) return call;
  call.inputs[kX] = caller.rows(call.x());
  for (size_t k = kFixedInputs; k < call.inputs.size(); ++k) call.inputs[k] = caller.state(call.inputs[k]);
  return call;
}

Tensors in_caller_layout(const CallerLayout& caller, Tensor y, Tensors& finals) {
  Tensors outputs{std::move(y)};
  outputs.insert(outputs.end(), std::make_move_iterator(finals.begin()), std::make_move_iterator(finals.end()));
  if (caller.plain()) return outputs;
  caller.give_rows(outputs[0]);
  for (size_t k = 1; k < outputs.size(); ++k) caller.give_state(outputs[k]);
  return outputs;
}

// Gradients of the inputs in their order; undefined if not requested
Tensors in_order(Gradients g, const LayerCall& call) {
  Tensors out(std::make_move_iterator(g.fixed.begin()), std::make_move_iterator(g.fixed.end()));
  g.states.resize(call.states().size());
  g.restart.resize(call.restarts);
  out.insert(out.end(), g.states.begin(), g.states.end());
  out.insert(out.end(), g.restart.begin(), g.restart.end());
  return out;
}

// The same for an operator's results, which omit gradients of states that are not requested
Tensors in_order(Tensors found, const Wanted& wanted, const LayerCall& call) {
  const auto end = found.begin() + kFixedInputs;
  Gradients g;
  std::move(found.begin(), end, g.fixed.begin());
  const auto states =
      static_cast<int64_t>(wanted[kStates] ? found.size() - kFixedInputs - (wanted[kRestart] ? call.restarts : 0) : 0);
  g.states.assign(end, end + states);
  g.restart.assign(end + states, found.end());
  return in_order(std::move(g), call);
}

// Backward through the dispatcher
Tensors dispatched_backward(const LayerCall& call, const Wanted& wanted, const Tensors& grads, const Tensors& results,
                            bool changed) {
  const auto backward = [&](const Tensor& y, at::TensorList saved) {
    return in_order(dispatch_backward(call, grads, y, saved, wanted), wanted, call);
  };
  if (!changed) return backward(results[0], at::TensorList(results).slice(1));
  const auto [y, _, saved] = dispatch_forward(call, true);
  return backward(y, saved);
}

// Gradients by `run`, which uses the operators' layout, with conversions by torch's view operations.
template <class Run>
Tensors gradients_by(const Run& run, const EagerCall& given, const Wanted& wanted, Tensors grads, Tensors results) {
  const CallerLayout caller = given.caller;
  LayerCall call = given;
  if (!caller.plain()) {
    call.inputs[kX] = caller.tracked_rows(call.x());
    for (size_t k = kFixedInputs; k < call.inputs.size(); ++k) call.inputs[k] = caller.tracked_state(call.inputs[k]);
    if (grads[0].defined()) grads[0] = caller.tracked_rows(grads[0]);
    for (size_t k = 1; k < grads.size(); ++k) {
      if (grads[k].defined()) grads[k] = caller.tracked_state(grads[k]);
    }
  }
  Tensors saved(results.begin() + 1, results.end());
  fill_saved(saved, call);
  std::move(saved.begin(), saved.end(), results.begin() + 1);
  Tensors found = run(call, wanted, grads, results);
  if (caller.plain()) return found;
  if (wanted[kX]) found[kX] = caller.tracked_back_rows(found[kX]);
  for (size_t k = kFixedInputs; k < found.size(); ++k) {
    if (found[k].defined()) found[k] = caller.tracked_back_state(found[k]);
  }
  return found;
}

// Return true for gradients that are batched by vmap, wrapped by torch.func, or to be differentiated themselves: those
// are handled in Python.
bool to_be_tracked(const variable_list& grads) {
  constexpr c10::DispatchKeySet kTransformed(
      {c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  const auto wrapped = [](const Tensor& g) { return g.defined() && g.key_set().has_any(kTransformed); };
  return at::GradMode::is_enabled() || std::any_of(grads.begin(), grads.end(), wrapped);
}

// Return true if a mode or a Tensor subclass (fake tensors, FLOP counters) must see the operators.
bool to_be_dispatched(const EagerCall& call, const variable_list& grads) {
  const auto watched = [](const Tensor& t) { return t.defined() && t.key_set().has(c10::DispatchKey::Python); };
  return c10::impl::dispatch_mode_enabled() || std::any_of(grads.begin(), grads.end(), watched) ||
         std::any_of(call.inputs.begin(), call.inputs.end(), watched);
}

bool onednn_has_bfloat16() {
  static const bool has = [] {
    const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_is_mkldnn_bf16_supported", ""});
    return op.has_value() && op->typed<bool()>().call();
  }();
  return has;
}

// Return true for rows of equal length, padded or packed.
bool is_rectangular(const EagerCall& call) {
  if (call.lengths || call.reset) return false;
  if (!call.batch_sizes) return true;
  const Tensor& rows = *call.batch_sizes;  // never increasing
  return rows[0].item<int64_t>() == rows[-1].item<int64_t>();
}

// Return true where torch.nn's LSTM runs in oneDNN, which takes zeros for a missing gradient, so that NaN spreads.
// Autograd omits such a gradient.
bool takes_zeros(const EagerCall& call) {
  const Tensor& w_hh = call.w_hh();
  if (names_custom_cell(call.cell) || find_cell(call.cell.c_str())->states != 2) return false;  // only the LSTM
  return !call.w_hr().defined() && !call.caller.no_steps && is_rectangular(call) &&
         at::globalContext().userEnabledMkldnn() &&
         (w_hh.scalar_type() == at::kFloat || (w_hh.scalar_type() == at::kBFloat16 && onednn_has_bfloat16()));
}

// Return true if only the cell state after a single step has a gradient, which does not involve the projection.
bool spares_projection(const EagerCall& call, const variable_list& grads) {
  return call.w_hr().defined() && !grads[0].defined() && !grads[1].defined() && is_single_step(call);
}

// `results`: y (T, B, P) and the saved tensors
Tensors gradients(const EagerCall& call, const Wanted& wanted, variable_list grads, Tensors results, bool changed) {
  if (!to_be_tracked(grads) && to_be_dispatched(call, grads)) {
    const auto run = [&](const LayerCall& own, const auto&... rest) {
      return dispatched_backward(own, rest..., changed);
    };
    return gradients_by(run, call, wanted, std::move(grads), std::move(results));
  }
  const LayerCall own = laid_out(call, call.caller);
  if (changed) {
    const at::NoGradGuard no_grad;
    Forward again = run_forward<Cpu>(own, true);
    results = {again.y};
    results.insert(results.end(), again.saved.begin(), again.saved.end());
  }
  // In plain PyTorch, if they are to be differentiated themselves
  if (to_be_tracked(grads)) return gradients_by(higher_order, call, wanted, std::move(grads), std::move(results));
  if (!call.caller.plain()) {
    if (grads[0].defined()) grads[0] = call.caller.rows(grads[0]);
    for (size_t k = 1; k < grads.size(); ++k) {
      if (grads[k].defined()) grads[k] = call.caller.state(grads[k]);
    }
  }
  if (!grads[0].defined() && !grads[1].defined() && takes_zeros(call)) {
    const int64_t batch = call.batch_sizes ? (*call.batch_sizes)[0].item<int64_t>() : results[0].size(1);
    grads[1] = at::zeros({batch, own.w_hh().size(1)}, results[0].options());
  }
  Tensors found = in_order(run_backward<Cpu>(own, grads, results[0], at::TensorList(results).slice(1), wanted), own);
  if (call.caller.plain()) return found;
  if (found[kX].defined()) call.caller.give_rows(found[kX]);
  for (size_t k = kFixedInputs; k < found.size(); ++k) {
    if (found[k].defined()) call.caller.give_state(found[k]);
  }
  return found;
}

}  // namespace

bool reads_all_inputs(const variable_list& grads, bool changed) { return changed || to_be_tracked(grads); }

// Saved: all inputs, batch_sizes, lengths, reset, y, and the forward pass's saved tensors.
variable_list layer_gradients(EagerCall call, size_t inputs, const variable_list& saved, bool changed,
                              const std::function<bool(size_t)>& wants, const variable_list& grads) {
  call.inputs.assign(saved.begin(), saved.begin() + static_cast<int64_t>(inputs));
  const auto place = [&](size_t k) -> size_t {
    return k < kFixedInputs ? k : k < inputs - call.restarts ? size_t{kStates} : size_t{kRestart};
  };
  Wanted wanted{};
  size_t edges = 0;
  for (size_t k = 0; k < inputs; ++k) {
    if (call.inputs[k].defined() && wants(edges++)) wanted[place(k)] = true;
  }
  if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); })) {
    return variable_list(edges);
  }
  auto next = saved.begin() + static_cast<int64_t>(inputs);
  call.batch_sizes = optional(*next++);
  call.lengths = optional(*next++);
  call.reset = optional(*next++);
  if (spares_projection(call, grads)) wanted[kWHr] = false;
  Tensors found = gradients(call, wanted, grads, Tensors(next, saved.end()), changed);
  variable_list out;
  out.reserve(edges);
  for (size_t k = 0; k < inputs; ++k) {
    if (!call.inputs[k].defined()) continue;
    out.push_back(wanted[place(k)] ? std::move(found[k]) : Tensor());
  }
  return out;
}

void set_higher_order(HigherOrder function) { higher_order = std::move(function); }

bool is_single_step(const EagerCall& call) {
  if (call.caller.no_steps) return true;
  if (call.batch_sizes) return call.batch_sizes->numel() == 1;
  return call.inputs[0].size(call.caller.batch_first ? 1 : 0) == 1;
}

bool is_plain(const LayerCall& call) {
  if (c10::impl::dispatch_mode_enabled() ||
      c10::impl::tls_local_dispatch_key_set().included_.has(c10::DispatchKey::Tracer)) {
    return false;
  }
  return std::all_of(call.inputs.begin(), call.inputs.end(),
                     [](const Tensor& t) { return !t.defined() || (t.device().is_cpu() && is_plain(t)); });
}

namespace {

bool needs_graph(const LayerCall& call) {
  // Inference mode and the body of a custom operator exclude autograd, whatever the grad mode.
  if (!at::GradMode::is_enabled() || c10::InferenceMode::is_enabled() ||
      c10::impl::tls_local_dispatch_key_set().excluded_.has(c10::DispatchKey::AutogradFunctionality)) {
    return false;
  }
  return std::any_of(call.inputs.begin(), call.inputs.end(),
                     [](const Tensor& t) { return t.defined() && t.requires_grad(); });
}

Forward compute(const EagerCall& call, bool graph) {
  const at::NoGradGuard no_grad;
  return run_forward<Cpu>(laid_out(call, call.caller), graph);
}

Tensors conclude(EagerCall call, Forward found, bool graph) {
  if (!graph) return in_caller_layout(call.caller, std::move(found.y), found.finals);
  // torch.nn.GRU and RNN allow changing their output in place, so y is saved with its own version counter.
  const Tensor own_y = memory_of(found.y, found.y.sizes());
  const CallerLayout caller = call.caller;
  Tensors outputs = in_caller_layout(caller, std::move(found.y), found.finals);
  record_layer(std::move(call), outputs, own_y, found.saved);
  return outputs;
}

// Two calls, each computed by one thread. The first free thread takes the next call, so that a thread without a core
// delays only a call that it has started.
struct Pair {
  const std::array<EagerCall, 2>& calls;
  const std::array<bool, 2> graph;
  const int threads = ThreadLimit::threads();
  const at::ThreadLocalState state{};
  std::array<Forward, 2> found{};
  std::array<std::exception_ptr, 2> errors{};
  std::atomic<size_t> next{0};

  void work() {
    const at::ThreadLocalStateGuard same(state);
    const ThreadLimit::OneOfSeveral one(threads);
    for (size_t k = next++; k < 2; k = next++) {
      try {
        found[k] = compute(calls[k], graph[k]);
      } catch (...) {  // exceptions must not leave a parallel region
        errors[k] = std::current_exception();
      }
    }
  }
  static void member(void* pair, Member&) { static_cast<Pair*>(pair)->work(); }
};

// Return true if two threads with one call each are faster than all threads on both calls in turn: they need no
// barrier, and each reads one matrix R. Not if R exceeds a core's own cache, nor with more threads unless a step is too
// short to be shared.
bool better_at_once(const EagerCall& call, int64_t multiply_adds) {
  constexpr int64_t kLeast = 500'000, kShortStep = 100'000;
  const Tensor &x = call.x(), &w_hh = call.w_hh();
  const int64_t batch = x.dim() == 3 ? x.size(call.caller.batch_first ? 0 : 1) : 1;
  return multiply_adds >= kLeast && !ThreadLimit::alone() && !at::in_parallel_region() && ThreadLimit::threads() >= 2 &&
         static_cast<double>(w_hh.nbytes()) < 0.7 * near_cache_bytes() &&
         (ThreadLimit::threads() == 2 || batch * w_hh.numel() < kShortStep);
}

}  // namespace

Tensors run_layer(EagerCall call) {
  if (!needs_graph(call)) {
    const CallerLayout caller = call.caller;
    Forward found = run_forward<Cpu>(laid_out(std::move(call), caller), false);
    return in_caller_layout(caller, std::move(found.y), found.finals);
  }
  Forward found = compute(call, true);
  return conclude(std::move(call), std::move(found), true);
}

std::array<Tensors, 2> run_both(std::array<EagerCall, 2> calls) {
  const Tensors& in = calls[0].inputs;
  const int64_t width = std::max<int64_t>(1, in[2].size(0));
  const int64_t depth = (in[2].numel() + (in[1].defined() ? in[1].numel() : 0)) / width;
  const LayerWork work{in[0].numel() / std::max<int64_t>(1, in[0].size(-1)), width, depth, 2};
  const ThreadLimit limit(work);
  if (!better_at_once(calls[0], work.rows * work.width * work.depth))
    return {run_layer(std::move(calls[0])), run_layer(std::move(calls[1]))};
  Pair pair{calls, {needs_graph(calls[0]), needs_graph(calls[1])}};
  run_team(2, &Pair::member, &pair);
  for (const std::exception_ptr& error : pair.errors) {
    if (error) std::rethrow_exception(error);
  }
  std::array<Tensors, 2> outputs;
  for (size_t k = 0; k < 2; ++k) outputs[k] = conclude(std::move(calls[k]), std::move(pair.found[k]), pair.graph[k]);
  return outputs;
}

}  // namespace fastrnn
