// Instruction set in use: the best of this machine, unless FASTRNN_CPU_CAPABILITY or a caller selects another.
#pragma once

#include <string>

#include "cpu/args.h"

namespace fastrnn {

// Names from the lowest to the highest; `supported` reports whether this processor can run them.
FASTRNN_SHARED int capability_count();
FASTRNN_SHARED const char* capability_name(int k);
FASTRNN_SHARED bool capability_supported(int k);

// The current one. The environment is read at first use; an unknown or unsupported name is ignored and reported by
// capability_problem().
FASTRNN_SHARED const char* capability();
FASTRNN_SHARED const char* capability_problem();
// Returns false if the name is unknown or unsupported; then nothing changes.
FASTRNN_SHARED bool set_capability(const char* name);

// Kernels of a cell for the current capability, or null if there is no such cell
FASTRNN_SHARED const CellKernels* find_cell(const char* name);
// Adds the kernels of a custom cell from a shared object that includes custom_unit.h, or those of further dtypes of a
// known cell. Returns an empty string, or the problem. Loaded objects are never unloaded.
FASTRNN_SHARED std::string load_cells(const char* path);
// Products for the current capability
FASTRNN_SHARED const ProductKernels& product_kernels();
// The name of the k-th cell, or null
FASTRNN_SHARED const char* cell_name(int k);

}  // namespace fastrnn
