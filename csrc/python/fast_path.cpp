#include "python/fast_path.h"

#include <ATen/FuncTorchTLS.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <atomic>

#include "cpu/dispatch.h"
#include "ops/aten.h"
#include "python/attributes.h"
#include "python/eager.h"
#include "python/plain.h"
#include "python/range.h"

namespace fastrnn {

namespace {

// Borrowed references, or owned permanently: set once, when the package is imported.
PyObject *layer_types = nullptr, *cell_types = nullptr, *modes = nullptr;
std::atomic<bool> enabled{true};

// Return true if a torch.func transform is active. Its state is queried as a C++ Function does, by catching its error.
bool transforming() {
  const auto& state = at::functorch::functorchTLSAccessor();
  if (!state) return false;
  try {
    state->checkSupportsCppAutogradFunction();
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

// Return true if nothing observes or changes the computation: no transform, mode, tracer, autocast or forward mode.
bool nobody_watches() {
  const auto tls = c10::impl::tls_local_dispatch_key_set();
  constexpr c10::DispatchKeySet kUsual({c10::DispatchKey::BackendSelect, c10::DispatchKey::ADInplaceOrView});
  return (tls.included_.raw_repr() & ~kUsual.raw_repr()) == 0 && tls.excluded_.has(c10::DispatchKey::AutocastCPU) &&
         !c10::impl::dispatch_mode_enabled() && !at::impl::torch_function_mode_enabled() &&
         !at::impl::torch_function_all_disabled() && !transforming() &&
         torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr;
}

bool known_format(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

bool has_sizes(const Tensor& t, at::IntArrayRef sizes) { return t.sizes() == sizes; }

struct Sizes {
  int64_t gates, inputs, hidden, projected;  // projected: that of h
  bool bias, projecting;
};

// Puts the weights of one layer and direction into call.inputs; returns false for anything unusual.
bool take_weights(EagerCall& call, Attributes& module, PyObject* parameters, PyObject* const* name, at::ScalarType type,
                  const Sizes& s) {
  const int64_t wide = s.gates * s.hidden;
  const std::array<int64_t, 5> rows{wide, wide, wide, wide, s.projected},
      columns{s.inputs, s.projected, 0, 0, s.hidden};
  for (int k = 0; k < 5; ++k) {
    const bool there = k < 2 || (k < 4 ? s.bias : s.projecting);
    if (!there) {
      call.inputs.emplace_back();
      continue;
    }
    const Tensor* t = module.weight(parameters, *name++, type);
    if (t == nullptr || t->dim() != (k == 2 || k == 3 ? 1 : 2) || t->size(0) != rows[k]) return false;
    if (t->dim() == 2 && t->size(1) != columns[k]) return false;
    call.inputs.push_back(*t);
  }
  return true;
}

// Takes a tuple (or list, if `list`) of `count` ordinary tensors of one dtype; returns false for anything else.
bool take_states(PyObject* given, int count, at::ScalarType type, std::array<const Tensor*, kMaxStates>& states) {
  PyObject* const* items = &given;
  if (PyTuple_CheckExact(given) || PyList_CheckExact(given)) {
    if (PySequence_Fast_GET_SIZE(given) != count) return false;
    items = PySequence_Fast_ITEMS(given);
  } else if (count != 1) {
    return false;
  }
  for (int k = 0; k < count; ++k) {
    states[k] = plain_tensor(items[k]);
    if (states[k] == nullptr || states[k]->scalar_type() != type) return false;
  }
  return true;
}

const CellKernels* cell_of(PyObject* name, std::string& text) {
  Py_ssize_t length = 0;
  const char* characters = name != nullptr && PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &length) : nullptr;
  if (characters == nullptr) return PyErr_Clear(), nullptr;
  text.assign(characters, static_cast<size_t>(length));
  return find_cell(text.c_str());
}

bool is_one_of(PyObject* types, PyObject* module) {
  for (Py_ssize_t k = 0; types != nullptr && k < PyTuple_GET_SIZE(types); ++k) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(module)) == PyTuple_GET_ITEM(types, k)) return true;
  }
  return false;
}

PyObject* as_tuple(const Tensors& tensors, size_t from) {
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(tensors.size() - from));
  for (size_t k = from; tuple != nullptr && k < tensors.size(); ++k) {
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(k - from), THPVariable_Wrap(tensors[k]));
  }
  return tuple;
}

// A call of LSTM, GRU or RNN. The three readers return false for anything unusual.
struct Network {
  std::string cell;
  const CellKernels* kernels = nullptr;
  Sizes sizes{};
  bool batch_first = false;
  int64_t directions = 1, count = 0;                // D; L·D
  PyObject *parameters = nullptr, *flat = nullptr;  // flat: names of the weights
  CallerLayout caller;
  std::array<const Tensor*, kMaxStates> given{};
  std::vector<EagerCall> calls;
  // With several calls, as torch operations record them:
  Tensor x;                      // (T, B, I)
  std::vector<Tensors> initial;  // by state, one tensor for each call; or none

  int each() const { return 2 + 2 * sizes.bias + sizes.projecting; }  // number of weights of a layer and direction

  bool read_module(Attributes& module) {
    const Names& n = names();
    PyObject* mode = module.get(n.mode);
    kernels = mode == nullptr ? nullptr : cell_of(PyDict_GetItemWithError(modes, mode), cell);
    if (kernels == nullptr) return PyErr_Clear(), false;
    const int64_t projection = module.number(n.proj_size);
    sizes = {kernels->gates, module.number(n.input_size), module.number(n.hidden_size),
             projection,     module.flag(n.bias),         projection > 0};
    if (!sizes.projecting) sizes.projected = sizes.hidden;
    batch_first = module.flag(n.batch_first);
    directions = module.flag(n.bidirectional) ? 2 : 1;
    parameters = module.get(n.parameters);
    flat = module.get(n.flat);
    if (!module.usual || !PyDict_CheckExact(parameters) || !PyList_CheckExact(flat) || sizes.hidden == 0) return false;
    count = PyList_GET_SIZE(flat) / each();
    if (count == 0 || PyList_GET_SIZE(flat) % each() != 0 || count % directions != 0) return false;
    if (!flat_weights_are_parameters(module.get(n.flat_weights))) return false;
    if (count == directions) return true;
    PyObject* dropout = module.get(n.dropout);  // applies between layers
    if (dropout == nullptr || !(PyFloat_CheckExact(dropout) || PyLong_CheckExact(dropout))) return false;
    return !module.flag(n.training) || PyObject_IsTrue(dropout) == 0;
  }

  // Return true if torch's list of weights holds the parameters and not other tensors put there.
  bool flat_weights_are_parameters(PyObject* weights) const {
    if (weights == nullptr || !PyList_CheckExact(weights) || PyList_GET_SIZE(weights) != PyList_GET_SIZE(flat)) {
      return false;
    }
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(flat); ++k) {
      if (PyDict_GetItemWithError(parameters, PyList_GET_ITEM(flat, k)) != PyList_GET_ITEM(weights, k)) {
        return PyErr_Clear(), false;
      }
    }
    return true;
  }

  bool read_call(const Tensor& input, PyObject* hx, bool stepping) {
    const int64_t dims = input.dim() + (stepping ? 1 : 0);
    if (dims != 2 && dims != 3) return false;
    caller.no_steps = stepping;
    caller.no_batch = dims == 2;
    caller.batch_first = batch_first && !stepping && !caller.no_batch;
    caller.layered = true;
    if (input.size(-1) != sizes.inputs || input.numel() == 0) return false;
    if (hx == Py_None) return true;
    // Several states are passed as a tuple, a single one is not.
    if ((kernels->states == 1) == (PyTuple_Check(hx) || PyList_Check(hx))) return false;
    if (!take_states(hx, kernels->states, input.scalar_type(), given)) return false;
    const int64_t batch = caller.no_batch ? 1 : (caller.batch_first || stepping ? input.size(0) : input.size(1));
    for (int s = 0; s < kernels->states; ++s) {
      const int64_t width = s == 0 ? sizes.projected : sizes.hidden;
      if (caller.no_batch ? !has_sizes(*given[s], {count, width}) : !has_sizes(*given[s], {count, batch, width})) {
        return false;
      }
    }
    return true;
  }

  bool read_weights(Attributes& module, at::ScalarType type) {
    calls.reserve(count);
    for (int64_t k = 0; k < count; ++k) {
      EagerCall& call = calls.emplace_back();
      call.cell = cell;
      call.reverse = k % directions == 1;
      call.inputs.reserve(kFixedInputs + kernels->states);
      call.inputs.emplace_back();
      Sizes own = sizes;
      if (k >= directions) own.inputs = directions * sizes.projected;
      if (!take_weights(call, module, parameters, PySequence_Fast_ITEMS(flat) + k * each(), type, own)) return false;
    }
    return true;
  }

  // Acquires the tensors for the computation.
  void take(const Tensor& input) {
    if (count > 1) {
      x = caller.tracked_rows(input);
      for (int s = 0; given[0] != nullptr && s < kernels->states; ++s) {
        initial.push_back((caller.no_batch ? given[s]->unsqueeze(1) : *given[s]).unbind(0));
      }
      return;
    }
    calls[0].caller = caller;
    calls[0].inputs[kX] = input;
    for (int s = 0; given[0] != nullptr && s < kernels->states; ++s) calls[0].inputs.push_back(*given[s]);
  }

  bool prepare(PyObject* object, PyObject* input, PyObject* hx, bool stepping) {
    const Tensor* t = plain_tensor(input);
    if (t == nullptr || !known_format(t->scalar_type())) return false;
    Attributes module(object);
    if (!read_module(module) || !read_call(*t, hx, stepping) || !read_weights(module, t->scalar_type())) return false;
    take(*t);
    return true;
  }

  // The input, the first layer's weights and the states, for the profiler
  Tensors shown() const {
    Tensors tensors = calls[0].inputs;
    if (count > 1) tensors[0] = x;
    for (const Tensors& column : initial) tensors.push_back(column[0]);
    return tensors;
  }

  Tensors run() {
    if (calls.size() == 1) return run_layer(std::move(calls[0]));
    std::vector<Tensors> finals(kernels->states);
    for (int64_t first = 0; first < count; first += directions) {
      for (int64_t k = first; k < first + directions; ++k) {
        calls[k].inputs[kX] = x;
        for (const Tensors& column : initial) calls[k].inputs.push_back(column[k]);
      }
      std::array<Tensors, 2> found;
      if (directions == 1) {
        found[0] = run_layer(std::move(calls[first]));
      } else {
        found = run_both({std::move(calls[first]), std::move(calls[first + 1])});
      }
      for (int64_t k = 0; k < directions; ++k) {
        for (int s = 0; s < kernels->states; ++s) finals[s].push_back(found[k][s + 1]);
      }
      x = directions == 1 ? found[0][0] : at::cat({found[0][0], found[1][0]}, -1);
    }
    Tensors out{caller.tracked_back_rows(x)};
    for (const Tensors& column : finals) {
      const Tensor all = at::stack(column);
      out.push_back(caller.no_batch ? all.squeeze(1) : all);
    }
    return out;
  }
};

// fast_path_layers(module, input, hx, stepping) -> (y, h or (h, c)), or None
PyObject* fast_path_layers(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Network network;
  if (count != 4 || !enabled || !nobody_watches() || !is_one_of(layer_types, args[0]) ||
      !network.prepare(args[0], args[1], args[2], args[3] == Py_True)) {
    Py_RETURN_NONE;
  }
  const Tensors out = [&] {
    const NoGil released;
    const Range range(network.cell, "", [&] { return network.shown(); });
    return network.run();
  }();
  PyObject* states = out.size() == 2 ? THPVariable_Wrap(out[1]) : as_tuple(out, 1);
  PyObject* both = PyTuple_New(2);
  PyTuple_SET_ITEM(both, 0, THPVariable_Wrap(out[0]));
  PyTuple_SET_ITEM(both, 1, states);
  return both;
  END_HANDLE_TH_ERRORS
}

bool prepare_cell(EagerCall& call, PyObject* const* args) {
  const Names& n = names();
  const Tensor* x = plain_tensor(args[2]);
  if (x == nullptr || !known_format(x->scalar_type()) || x->dim() < 1 || x->dim() > 2) return false;
  Attributes attributes(args[0]);
  const CellKernels* kernels = cell_of(args[1], call.cell);
  if (kernels == nullptr) return false;
  const int64_t inputs = attributes.number(n.input_size), hidden = attributes.number(n.hidden_size);
  const Sizes sizes{kernels->gates, inputs, hidden, hidden, attributes.flag(n.bias), false};
  PyObject* parameters = attributes.get(n.parameters);
  if (!attributes.usual || !PyDict_CheckExact(parameters)) return false;
  if (x->size(-1) != inputs || x->numel() == 0 || hidden == 0) return false;
  call.reverse = false;
  call.caller.no_steps = true;
  call.caller.no_batch = x->dim() == 1;
  call.inputs.reserve(kFixedInputs + kernels->states);
  call.inputs.push_back(*x);
  if (!take_weights(call, attributes, parameters, n.cell, x->scalar_type(), sizes)) return false;
  if (args[3] == Py_None) return true;
  std::array<const Tensor*, kMaxStates> states{};
  if (!PyTuple_CheckExact(args[3]) || !take_states(args[3], kernels->states, x->scalar_type(), states)) return false;
  for (int s = 0; s < kernels->states; ++s) {
    if (call.caller.no_batch ? !has_sizes(*states[s], {hidden}) : !has_sizes(*states[s], {x->size(0), hidden})) {
      return false;
    }
    call.inputs.push_back(*states[s]);
  }
  return true;
}

// fast_path_cell(module, cell, input, states) -> the new states, or None
PyObject* fast_path_cell(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  EagerCall call{};
  if (count != 4 || !enabled || !nobody_watches() || !is_one_of(cell_types, args[0]) || !prepare_cell(call, args)) {
    Py_RETURN_NONE;
  }
  const Tensors out = [&] {
    const NoGil released;
    const Range range(call.cell, "_cell", [&] { return call.inputs; });
    return run_layer(std::move(call));
  }();
  return as_tuple(out, 1);
  END_HANDLE_TH_ERRORS
}

// use_fast_path(classes of layers, classes of cells, {mode: cell})
PyObject* use_fast_path(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !PyTuple_Check(args[0]) || !PyTuple_Check(args[1]) || !PyDict_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "use_fast_path: expected two tuples of classes and a dict");
    return nullptr;
  }
  for (int k = 0; k < 3; ++k) Py_INCREF(args[k]);
  layer_types = args[0];
  cell_types = args[1];
  modes = args[2];
  Py_RETURN_NONE;
}

PyObject* set_fast_path(PyObject*, PyObject* on) {
  enabled = PyObject_IsTrue(on) == 1;
  Py_RETURN_NONE;
}

template <class F>
PyCFunction as_function(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"fast_path_layers", as_function(&fast_path_layers), METH_FASTCALL,
     "(module, input, hx, stepping): its result, or None."},
    {"fast_path_cell", as_function(&fast_path_cell), METH_FASTCALL,
     "(module, cell, input, states): new states, or None."},
    {"use_fast_path", as_function(&use_fast_path), METH_FASTCALL, "(classes of layers, of cells, {mode: cell})"},
    {"set_fast_path", as_function(&set_fast_path), METH_O,
     "Whether fast_path_layers and fast_path_cell do anything (tests)."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMethodDef* fast_path_methods() { return methods; }

}  // namespace fastrnn
