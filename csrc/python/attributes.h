// Attributes of a module, read from its __dict__ without calling Python.
#pragma once

#include "python/plain.h"

namespace fastrnn {

// Interned attribute names
struct Names {
  PyObject *mode = intern("mode"), *input_size = intern("input_size"), *hidden_size = intern("hidden_size"),
           *bias = intern("bias"), *batch_first = intern("batch_first"), *dropout = intern("dropout"),
           *bidirectional = intern("bidirectional"), *proj_size = intern("proj_size"), *training = intern("training"),
           *parameters = intern("_parameters"), *flat = intern("_flat_weights_names"),
           *flat_weights = intern("_flat_weights");
  PyObject* cell[4] = {intern("weight_ih"), intern("weight_hh"), intern("bias_ih"), intern("bias_hh")};
  static PyObject* intern(const char* text) { return PyUnicode_InternFromString(text); }
};
inline const Names& names() {
  static const Names* const all = new Names();
  return *all;
}

// Reader of the attributes in a module's __dict__
struct Attributes {
  PyObject* dict;
  bool usual = true;

  explicit Attributes(PyObject* module) : dict(PyObject_GenericGetDict(module, nullptr)) {
    usual = dict != nullptr && PyDict_CheckExact(dict);
    if (dict == nullptr) PyErr_Clear();
  }
  ~Attributes() { Py_XDECREF(dict); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;

  PyObject* get(PyObject* name) {
    PyObject* found = usual ? PyDict_GetItemWithError(dict, name) : nullptr;
    if (found == nullptr) {
      PyErr_Clear();
      usual = false;
    }
    return found;
  }
  int64_t number(PyObject* name) {
    PyObject* found = get(name);
    if (found == nullptr || !PyLong_CheckExact(found)) return usual = false, 0;
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(found, &overflow);
    usual = usual && overflow == 0 && value >= 0;
    return value;
  }
  bool flag(PyObject* name) {
    PyObject* found = get(name);
    usual = usual && (found == Py_True || found == Py_False);
    return found == Py_True;
  }
  // A parameter of that name, or null. Read at each call, so that changes of the module take effect.
  const at::Tensor* weight(PyObject* parameters, PyObject* name, at::ScalarType type) {
    PyObject* found = PyDict_GetItemWithError(parameters, name);
    if (found == nullptr || PyDict_Contains(dict, name) != 0) {
      PyErr_Clear();
      return nullptr;
    }
    const at::Tensor* t = plain_tensor(found);
    return t != nullptr && t->scalar_type() == type ? t : nullptr;
  }
};

}  // namespace fastrnn
