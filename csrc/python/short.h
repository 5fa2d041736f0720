// The short way from a module's call to the kernels: the checks that the modules do in Python, done here for calls in
// which everything is ordinary. For any other the functions answer None, and the module goes its usual way.
#pragma once

#include <torch/csrc/python_headers.h>

namespace fastrnn {

// Methods to add to the module: short_layers, short_cell, use_short, set_short.
PyMethodDef* short_methods();

}  // namespace fastrnn
