// Forward pass of a call on every device: input product, recurrence, saved tensors.
#pragma once

#include "ops/checked.h"
#include "ops/tensors.h"

namespace fastrnn {

// Tensors of a forward pass, as the driver takes them: contiguous, rows in the order of the layout.
struct ForwardPass {
  Tensor w_hh, b_ih, b_hh, w_hr;        // b_ih: undefined if it is in `gates` already
  Tensors states, restart;              // (B, ·); none: zeros, the initial states
  Tensor gates;                         // (N, G·H): W·x; the driver overwrites it if `training`
  Tensor extra, cells, unprojected, y;  // (N, ·); the first three undefined if not saved
  Tensors finals;                       // (B, ·)
  bool training;
};

// Fills the part of a driver's arguments that is common to all devices. `c`: the call.
template <class Device, class Pass, class Args>
void fill_common(const Checked<Device>& c, const Pass& pass, Args& args) {
  args.w_hh = data_of(pass.w_hh);
  args.parameters = c.parameters_of(pass.w_hh);
  for (size_t s = 0; s < pass.states.size(); ++s) args.initial[s] = args.restart[s] = data_of(pass.states[s]);
  for (size_t s = 0; s < pass.restart.size(); ++s) args.restart[s] = data_of(pass.restart[s]);
}

template <class Device, class Args>
void fill(const Checked<Device>& c, const ForwardPass& pass, Args& args) {
  fill_common(c, pass, args);
  args.b_hh = data_of(pass.b_hh);
  args.gates = writable(pass.gates);
  args.extra = writable(pass.extra);
  args.cells = writable(pass.cells);
  args.unprojected = writable(pass.unprojected);
  args.y = writable(pass.y);
  args.training = pass.training;
  for (size_t s = 0; s < pass.finals.size(); ++s) args.final_states[s] = writable(pass.finals[s]);
}

struct Forward {
  Tensor y;
  Tensors finals, saved;  // saved: kSavedTensors, undefined where a cell saves none; empty unless `training`
};

// (B, 1): rows with a reset at their first time step. Undefined if there are none, and in reverse, where the first step
// in time is the last one.
template <class Device>
Tensor first_resets(const Checked<Device>& c, const LayerCall& call) {
  if (call.restarts == 0 || c.reverse || c.layout.batch == 0) return {};
  Tensor flags = call.reset->select(0, 0).to(c.device, /*non_blocking=*/true);
  if (call.lengths) flags = flags.logical_and(call.lengths->to(c.device, /*non_blocking=*/true) > 0);
  if (c.device.is_cpu() && !flags.any().template item<bool>()) return {};  // on a GPU this would synchronise
  return flags.unsqueeze(1);
}

// The initial states of the rows, in the layout's row order: the given ones, or none for zeros; restart states for the
// rows `first`.
template <class Device>
Tensors initial_states(const Checked<Device>& c, const LayerCall& call, const Tensor& first) {
  const at::TensorList given = call.states();
  Tensors states;
  states.reserve(given.size());
  if (!first.defined()) {
    for (const Tensor& s : given) states.push_back(c.layout.sort(s));
    return states;
  }
  for (int s = 0; s < c.cell->states; ++s) {
    const Tensor state = given.empty() ? at::zeros({c.layout.batch, c.width(s)}, c.options) : given[s];
    states.push_back(c.layout.sort(at::where(first, call.restart()[s], state)));
  }
  return states;
}

template <class Device>
Tensors restart_states(const Checked<Device>& c, const LayerCall& call) {
  Tensors states;
  for (const Tensor& s : call.restart()) states.push_back(c.layout.sort(s));
  return states;
}

// W·x for all rows, in memory that the driver may overwrite if `training`. `bias`: b_ih, if it is to be added here.
template <class Device>
Tensor input_product(const Checked<Device>& c, const LayerCall& call, const Tensor& bias, bool training,
                     typename Device::Memory& memory) {
  const Tensor rows = c.layout.gather_without_padding(call.x());
  const bool given = !call.w_ih().defined();
  if (training && c.layout.capacity() > c.layout.rows) {
    const Tensor gates = memory.saved(c.layout, c.gate_width(), c.options);
    Tensor used = gates.narrow(0, 0, c.layout.rows);
    if (given) {
      used.copy_(bias.defined() ? rows.add(bias) : rows);
    } else {
      Device::products::forward_into(used, rows, present(call.w_ih()), optional(bias));
    }
    return gates;
  }
  if (!given) return Device::products::forward(rows, present(call.w_ih()), optional(bias));
  if (bias.defined()) return rows.add(bias);
  return training && rows.is_alias_of(call.x()) ? rows.clone() : rows;
}

template <class Device>
Forward run_forward(const LayerCall& call, bool training) {
  const typename Device::Inside inside(call);
  const Checked<Device> c(call, call.x());
  const typename Device::ThreadLimit limit(c, call, 1);
  typename Device::Memory memory;
  ForwardPass pass;
  pass.training = training;
  const bool bias_here = Device::adds_bias(c, call);
  const Tensor b_ih = dense_if(call.b_ih());
  pass.gates = input_product(c, call, bias_here ? b_ih : Tensor(), training, memory);
  if (!bias_here) pass.b_ih = b_ih;
  pass.w_hh = dense(call.w_hh());
  pass.b_hh = dense_if(call.b_hh());
  pass.w_hr = dense_if(call.w_hr());
  pass.states = initial_states(c, call, first_resets(c, call));
  pass.restart = restart_states(c, call);
  const auto tensors = c.saved();
  const auto saved = [&](size_t k) {
    const int64_t width = tensors[k].width(c.hidden);
    if (!training || width == 0) return Tensor();
    return memory.saved(c.layout, width, tensors[k].compute ? c.options.dtype(c.compute_type()) : c.options);
  };
  pass.extra = saved(1);
  pass.cells = saved(2);
  pass.unprojected = saved(3);
  pass.y = memory.empty({c.layout.rows, c.projected}, c.options);
  pass.finals.reserve(c.cell->states);
  for (int s = 0; s < c.cell->states; ++s) {
    pass.finals.push_back(memory.empty({c.layout.batch, c.width(s)}, c.options));
  }
  if (c.layout.batch > 0) Device::run(c, pass, memory);

  for (Tensor& f : pass.finals) f = c.layout.unsort(std::move(f));
  Forward out{c.layout.scatter(pass.y), std::move(pass.finals), {}};
  if (!training) return out;
  for (const Tensor& t : {c.cell->saved > 0 ? pass.gates : Tensor(), pass.extra, pass.cells, pass.unprojected}) {
    out.saved.push_back(t.defined() ? c.layout.shaped(t) : t);
  }
  return out;
}

}  // namespace fastrnn
