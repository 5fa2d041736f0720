#include <torch/csrc/python_headers.h>
// after Python's
#include <ATen/core/LegacyTypeDispatch.h>
#include <string.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "cpu/dispatch.h"
#include "ops/cpu/device.h"
#include "python/plain.h"
#include "python/range.h"
#include "python/stream.h"

namespace fastrnn {

namespace {

// Steps with more multiply-adds (about 10 µs) release the Python GIL.
constexpr int64_t kBrief = 250'000;  // multiply-adds

// Dispatch keys that a step excludes: autocast, torch.func transforms and modes; autograd is excluded as well.
constexpr c10::DispatchKeySet kFollowers =
    c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::Tracer,
                         c10::DispatchKey::PythonDispatcher, c10::DispatchKey::PreDispatch,
                         c10::DispatchKey::Functionalize, c10::DispatchKey::VmapMode,
                         c10::DispatchKey::FuncTorchVmapMode, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                         c10::DispatchKey::FuncTorchDynamicLayerBackMode}) |
    c10::autocast_dispatch_keyset;

struct Apart {
  c10::impl::ExcludeDispatchKeyGuard unseen{kFollowers};
  at::AutoDispatchBelowADInplaceOrView untracked;
};

// A stream writes its own tensors in inference mode and outside of it, so they are created outside.
Tensor own(at::IntArrayRef sizes, const Tensor& like) {
  const c10::InferenceMode off(false);
  return products::empty(sizes, like);
}

Tensor own_copy(const Tensor& t) {
  Tensor copy = own(t.sizes(), t);
  const Apart apart;
  copy.copy_(t);
  return copy;
}

bool is_wrapped(const Tensor& t) {
  constexpr c10::DispatchKeySet kWrapped({c10::DispatchKey::Python, c10::DispatchKey::Batched,
                                          c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
                                          c10::DispatchKey::Functionalize});
  return t.key_set().has_any(kWrapped);
}

}  // namespace

Tensor plain_copy(const Tensor& t) { return is_wrapped(t) ? Tensor() : own_copy(t); }

Stream::Stream(const std::string& cell, std::vector<Tensors> weights, int64_t batch)
    : cell_(cell), batch_(batch), counts_{batch} {
  const CellKernels* kernels = find_cell(cell.c_str());
  TORCH_CHECK_VALUE(kernels != nullptr && !kernels->staged && kernels->second == 0,
                    "cell: expected one that multiplies nothing but h, got ", cell);
  TORCH_CHECK_VALUE(batch > 0, "batch: expected a positive number of rows, got ", batch);
  set_weights(std::move(weights));
  narrow_ = weights_[0].size() == 7;
  type_ = narrow_ ? at::kFloat : weights_[0][1].scalar_type();
  const Tensor &w_ih = weights_[0][0], &w_hh = weights_[0][1];
  const Tensor like = narrow_ ? own({0}, at::empty({0}, at::kFloat)) : w_hh;
  inputs_ = w_ih.size(1);
  hidden_ = w_ih.size(0) / kernels->gates;
  projected_ = w_hh.size(1);
  int64_t elements = 0;
  for (const Tensors& layer : weights_) elements += layer[0].numel() + layer[1].numel();
  brief_ = batch * elements < kBrief;
  const auto layers = static_cast<int64_t>(weights_.size());
  for (int turn = 0; turn < 2; ++turn) {
    by_layer_[turn].resize(layers);
    for (int s = 0; s < kernels->states; ++s) {
      const int64_t width = s == 0 ? projected_ : hidden_;
      Tensor& state = states_[turn].emplace_back(own({layers, batch, width}, like));
      memset(state.mutable_data_ptr(), 0, state.nbytes());
      for (int64_t k = 0; k < layers; ++k) {
        Tensor& part = by_layer_[turn][k].emplace_back(memory_of(state, {batch, width}));
        part.unsafeGetTensorImpl()->set_storage_offset(k * batch * width);
      }
    }
  }
  gates_ = own({batch, w_ih.size(0)}, like);
  product_ = own({batch, kernels->recurrent * hidden_}, like);
  for (int64_t k = 1; k < layers; ++k) between_.push_back(own({batch, projected_}, like));
}

void Stream::check_weights(const CellKernels& cell, const std::vector<Tensors>& weights) const {
  TORCH_CHECK_VALUE(!weights.empty() && (weights_.empty() || weights.size() == weights_.size()),
                    "weights: expected those of every layer, got ", weights.size(), " layers");
  const size_t count = weights[0].size();
  TORCH_CHECK_VALUE((count == 5 || count == 7) && weights[0][0].defined() && weights[0][0].dim() == 2 &&
                        weights[0][1].defined() && weights[0][1].dim() == 2,
                    "weights: expected w_ih, w_hh, b_ih, b_hh, w_hr of each layer");
  const at::ScalarType matrices = weights[0][1].scalar_type();
  const at::ScalarType wanted = weights_.empty() ? matrices : weights_[0][1].scalar_type();
  const bool narrow = count == 7;
  TORCH_CHECK_VALUE(!narrow || ((matrices == at::kBFloat16 || matrices == at::kChar) && cell.parameters == 0),
                    "weights: expected narrow ones in bfloat16 or int8, and no parameters of a cell, got ", matrices);
  TORCH_CHECK_VALUE(weights_.empty() || narrow == narrow_, "weights: expected ", wanted, " as before, got ", matrices);
  const int64_t G = cell.gates, R = cell.recurrent, H = weights[0][0].size(0) / G, P = weights[0][1].size(1);
  for (size_t k = 0; k < weights.size(); ++k) {
    const std::array<std::vector<int64_t>, 7> sizes{std::vector<int64_t>{G * H, k == 0 ? weights[0][0].size(1) : P},
                                                    {R * H + cell.parameters, P},
                                                    {G * H},
                                                    {R * H},
                                                    {P, H},
                                                    {G * H},
                                                    {R * H}};
    TORCH_CHECK_VALUE(weights[k].size() == count, "weights: expected ", count, " tensors of layer ", k, ", got ",
                      weights[k].size());
    for (size_t i = 0; i < count; ++i) {
      const Tensor& w = weights[k][i];
      if (!w.defined() && (i == 2 || i == 3 || (i == 4 && P == H) || (i > 4 && wanted != at::kChar))) continue;
      TORCH_CHECK_VALUE(i != 4 || projectable(cell), "weights: expected no projection of the cell ", cell_);
      const at::ScalarType type = narrow && i > 1 ? at::kFloat : wanted;
      TORCH_CHECK_VALUE(
          w.defined() && w.sizes() == sizes[i] && w.device().is_cpu() && w.is_contiguous() && w.scalar_type() == type,
          "weights: expected a dense tensor of shape ", c10::IntArrayRef(sizes[i]), " and ", type,
          " on the CPU at position ", i, " of layer ", k);
    }
  }
  TORCH_CHECK_VALUE(weights_.empty() || (weights[0][0].size(1) == inputs_ && H == hidden_ && P == projected_),
                    "weights: expected the sizes that the stream was made with");
}

void Stream::set_weights(std::vector<Tensors> weights) {
  const std::lock_guard lock(mutex_);
  check_weights(*find_cell(cell_.c_str()), weights);
  weights_.swap(weights);
}

Tensors Stream::states() const {
  const std::lock_guard lock(mutex_);
  Tensors copies;
  for (const Tensor& s : states_[now_]) copies.push_back(own_copy(s));
  return copies;
}

void Stream::set_states(const Tensors& values) {
  const std::lock_guard lock(mutex_);
  TORCH_CHECK_VALUE(values.size() == states_[now_].size(), "state: expected ", states_[now_].size(), " tensors, got ",
                    values.size());
  for (const Tensor& v : values) {
    TORCH_CHECK_TYPE(!is_wrapped(v), "state: expected ordinary tensors, got one that torch.func or a mode has wrapped");
  }
  const Apart apart;
  for (size_t s = 0; s < values.size(); ++s) states_[now_][s].copy_(values[s]);
}

void Stream::reset(const std::optional<std::vector<int64_t>>& rows, const Tensors& initial) {
  const std::lock_guard lock(mutex_);
  for (const int64_t b : rows.value_or(std::vector<int64_t>())) {
    TORCH_CHECK_INDEX(b >= 0 && b < batch_, "rows: expected rows from 0 to ", batch_ - 1, ", got ", b);
  }
  TORCH_CHECK_VALUE(initial.empty() || initial.size() == states_[now_].size(), "initial: expected ",
                    states_[now_].size(), " states, got ", initial.size());
  for (size_t s = 0; s < initial.size(); ++s) {
    const Tensor &given = initial[s], &state = states_[now_][s];
    TORCH_CHECK_VALUE(given.defined() && given.sizes() == state.sizes() && given.scalar_type() == type_ &&
                          given.device().is_cpu() && given.is_contiguous() && !is_wrapped(given),
                      "initial: expected dense states of shape ", state.sizes(), " and ", type_);
  }
  std::vector<int64_t> all;
  for (int64_t b = 0; !rows && b < batch_; ++b) all.push_back(b);
  for (size_t s = 0; s < states_[now_].size(); ++s) {
    const Tensor& state = states_[now_][s];
    const auto layers = static_cast<int64_t>(weights_.size()),
               row = static_cast<int64_t>(state.nbytes()) / layers / batch_;
    char* to = static_cast<char*>(state.mutable_data_ptr());
    const char* from = initial.empty() ? nullptr : static_cast<const char*>(initial[s].const_data_ptr());
    for (int64_t k = 0; k < layers; ++k) {
      for (const int64_t b : rows ? *rows : all) {
        const int64_t at = (k * batch_ + b) * row;
        from == nullptr ? memset(to + at, 0, row) : memcpy(to + at, from + at, row);
      }
    }
  }
}

bool Stream::fits(const Tensor& x) const {
  return x.scalar_type() == type_ && x.is_contiguous() && !x.is_neg() &&
         (x.dim() == 2 ? x.size(0) == batch_ : x.dim() == 1 && batch_ == 1) && x.size(-1) == inputs_;
}

Tensor Stream::step(const Tensor& x) {
  const std::lock_guard lock(mutex_);
  return step_locked(x);
}

Tensor Stream::step_without_waiting(const Tensor& x) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  return lock ? step_locked(x) : Tensor();
}

void Stream::multiply(const Tensors& layer, const Tensor& x, const Tensor& h, bool ahead) {
  const bool half = gates_.element_size() == 2;  // W·x is not to be rounded before its bias is added
  const OptionalTensor scales[2] = {narrow_ ? optional(layer[5]) : OptionalTensor(),
                                    narrow_ ? optional(layer[6]) : OptionalTensor()};
  const products::Forward input{gates_, x, layer[0], half ? optional(layer[2]) : OptionalTensor(), scales[0]};
  if (!ahead) return products::forward_one(input);
  // The rows of R may be followed by a cell's parameters.
  const Tensor& w = layer[1];
  const Tensor rows = w.size(0) == product_.size(1) ? w : memory_of(w, {product_.size(1), w.size(1)});
  products::forward_both(input, {product_, h, rows, optional(layer[3]), scales[1]});
}

Tensor Stream::step_locked(const Tensor& x) {
  const Range range(cell_, "_step", [&] { return Tensors{x}; });
  const Apart apart;
  const CellKernels* kernels = &kernels_of(cell_, type_);
  const int format = static_cast<int>(format_for(*kernels, type_));
  const bool ahead = multiplies_ahead(*kernels, 1);
  TORCH_CHECK(!narrow_ || ahead || kernels->recurrent == 0,
              "batch_invariant: expected a stream whose weights are those of its module");
  const bool half = gates_.element_size() == 2;  // its bias is in W·x
  Buffers buffers;
  const Tensor y = buffers.empty({batch_, projected_}, gates_.options());
  Tensor in = x.dim() == 2 ? x : memory_of(x, {1, x.size(0)});
  ForwardArgs args{};
  args.seq = {1, batch_, hidden_, projected_, counts_.data(), offsets_.data(), nullptr, false, threads(), Split::kAuto};
  for (size_t k = 0; k < weights_.size(); ++k) {
    const Tensors& w = weights_[k];
    const auto data = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
    Tensors &before = by_layer_[now_][k], &after = by_layer_[1 - now_][k];
    const Tensor& out = k + 1 < weights_.size() ? between_[k] : y;
    multiply(w, in, before[0], ahead);
    args.w_hh = w[1].const_data_ptr();
    args.parameters = static_cast<const char*>(args.w_hh) + product_.size(1) * projected_ * w[1].element_size();
    args.b_ih = half ? nullptr : data(w[2]);
    args.w_hr = data(w[4]);
    args.rh = ahead ? product_.const_data_ptr() : nullptr;
    args.b_hh = ahead ? nullptr : data(w[3]);
    args.gates = gates_.mutable_data_ptr();
    args.y = out.mutable_data_ptr();
    for (int s = 0; s < kernels->states; ++s) {
      args.initial[s] = before[s].const_data_ptr();
      args.final_states[s] = after[s].mutable_data_ptr();
    }
    buffers.verify(kernels->forward[format](args));
    in = out;
  }
  now_ = 1 - now_;
  if (x.dim() == 1) y.unsafeGetTensorImpl()->set_sizes_contiguous(at::IntArrayRef{projected_});
  return y;
}

namespace {

// step(handle of a stream, x)
PyObject* step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 2 || PyCapsule_IsValid(args[0], kStreamHandle) == 0) {
    PyErr_SetString(PyExc_TypeError, "stream_step: expected a handle and a tensor");
    return nullptr;
  }
  // Holds a reference: another thread may delete the Python object during the step.
  const auto stream = *static_cast<std::shared_ptr<Stream>*>(PyCapsule_GetPointer(args[0], kStreamHandle));
  const Tensor* x = plain_tensor(args[1]);
  if (x == nullptr || !stream->fits(*x)) Py_RETURN_NONE;
  Tensor y;
  if (stream->brief()) y = stream->step_without_waiting(*x);
  if (!y.defined()) {
    const Tensor held = *x;
    const NoGil released;
    y = stream->step(held);
  }
  return THPVariable_Wrap(y);
  END_HANDLE_TH_ERRORS
}

PyMethodDef step_methods[] = {{"stream_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step)),
                               METH_FASTCALL, "(handle, x): y of the next step, or None if x does not fit."},
                              {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMethodDef* stream_methods() { return step_methods; }

}  // namespace fastrnn
