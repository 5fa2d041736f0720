// Fast-path check for ordinary dense CPU tensors; RAII guard that releases the GIL.
#pragma once

#include <torch/csrc/python_headers.h>
// after Python.h
#include <torch/csrc/autograd/python_variable.h>

namespace fastrnn {

// Return a dense CPU tensor whose class is exactly Tensor or Parameter, or null.
inline const at::Tensor* plain_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(object);
  constexpr c10::DispatchKeySet kUsual({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                        c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU});
  return (t.key_set().raw_repr() & ~kUsual.raw_repr()) == 0 ? &t : nullptr;
}

// Releases the Python GIL while alive.
struct NoGil {
  PyThreadState* state = PyEval_SaveThread();
  NoGil() = default;
  NoGil(const NoGil&) = delete;
  NoGil& operator=(const NoGil&) = delete;
  ~NoGil() { PyEval_RestoreThread(state); }
};

}  // namespace fastrnn
