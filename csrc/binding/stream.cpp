#include <torch/csrc/python_headers.h>
// after Python's
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "binding/buffers.h"
#include "binding/plain.h"
#include "binding/products.h"
#include "binding/stream.h"
#include "cpu/dispatch.h"

namespace fastrnn {

Stream::Stream(const std::string& cell, std::vector<Tensors> weights, int64_t batch)
    : cell_(cell), batch_(batch), counts_{batch} {
  const CellKernels* kernels = find_cell(cell.c_str());
  TORCH_CHECK_VALUE(kernels != nullptr, "cell: there are no kernels for ", cell);
  set_weights(std::move(weights));
  const Tensor& w_hh = weights_[0][1];
  hidden_ = w_hh.size(0) / kernels->gates;
  projected_ = w_hh.size(1);
  const auto layers = static_cast<int64_t>(weights_.size());
  for (int turn = 0; turn < 2; ++turn) {
    by_layer_[turn].resize(layers);
    for (int s = 0; s < kernels->states; ++s) {
      states_[turn].push_back(at::zeros({layers, batch, s == 0 ? projected_ : hidden_}, w_hh.options()));
      for (int64_t k = 0; k < layers; ++k) by_layer_[turn][k].push_back(states_[turn][s].select(0, k));
    }
  }
  gates_ = products::empty({batch, w_hh.size(0)}, w_hh);
  product_ = products::empty({batch, w_hh.size(0)}, w_hh);
  for (int64_t k = 1; k < layers; ++k) between_.push_back(products::empty({batch, projected_}, w_hh));
}

void Stream::set_weights(std::vector<Tensors> weights) {
  TORCH_CHECK_VALUE(!weights.empty() && (weights_.empty() || weights.size() == weights_.size()),
                    "weights: expected those of every layer");
  weights_ = std::move(weights);
}

bool Stream::fits(const Tensor& x) const {
  const Tensor& w = weights_[0][0];
  return x.scalar_type() == w.scalar_type() && x.is_contiguous() && !x.is_neg() &&
         (x.dim() == 2 ? x.size(0) == batch_ : x.dim() == 1 && batch_ == 1) && x.size(-1) == w.size(1);
}

Tensor Stream::step(const Tensor& x) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::AutoDispatchBelowADInplaceOrView plain;
  const CellKernels* kernels = find_cell(cell_.c_str());
  const Tensor& like = weights_[0][1];
  const bool half = like.element_size() == 2;  // W·x is not to be rounded before its bias is added
  Buffers buffers;
  const Tensor y = buffers.empty({batch_, projected_}, like.options());
  Tensor in = x.dim() == 2 ? x : memory_of(x, {1, x.size(0)});
  ForwardArgs args{};
  args.seq = {1, batch_, hidden_, projected_, counts_.data(), offsets_.data(), nullptr, false, threads(), Split::kAuto};
  for (size_t k = 0; k < weights_.size(); ++k) {
    const Tensors& w = weights_[k];
    const auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); };
    const auto data = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
    Tensors &before = by_layer_[now_][k], &after = by_layer_[1 - now_][k];
    const Tensor& out = k + 1 < weights_.size() ? between_[k] : y;
    products::forward_into(gates_, in, w[0], half ? optional(w[2]) : OptionalTensor());
    products::forward_into(product_, before[0], w[1], optional(w[3]));
    args.w_hh = w[1].const_data_ptr();
    args.b_ih = half ? nullptr : data(w[2]);
    args.w_hr = data(w[4]);
    args.rh = product_.const_data_ptr();
    args.gates = gates_.mutable_data_ptr();
    args.y = out.mutable_data_ptr();
    for (int s = 0; s < kernels->states; ++s) {
      args.initial[s] = before[s].const_data_ptr();
      args.final_states[s] = after[s].mutable_data_ptr();
    }
    buffers.verify(kernels->forward[static_cast<int>(format_of(like.scalar_type()))](args));
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
  // A reference of its own: the step may outlive who called it, should the object be given up meanwhile.
  const auto stream = *static_cast<std::shared_ptr<Stream>*>(PyCapsule_GetPointer(args[0], kStreamHandle));
  const Tensor* x = plain_tensor(args[1]);
  if (x == nullptr || !stream->fits(*x)) Py_RETURN_NONE;
  return THPVariable_Wrap(stream->step(*x));
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {{"stream_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step)),
                          METH_FASTCALL, "(handle, x): y of the next step, or None if x does not fit."},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMethodDef* stream_methods() { return methods; }

}  // namespace fastrnn
