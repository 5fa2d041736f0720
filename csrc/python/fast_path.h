// Fast path from a module's call to the kernels: the modules' checks, done in C++ for ordinary calls. For any other
// call the functions return None, and the module continues in Python.

#include <torch/csrc/python_headers.h>

namespace fastrnn {

// Methods to add to the module: fast_path_layers, fast_path_cell, use_fast_path, set_fast_path.
PyMethodDef* fast_path_methods();

}  // namespace fastrnn
