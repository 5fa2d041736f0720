// Instruction set in use: the best of this machine, unless FASTRNN_CPU_CAPABILITY or a caller selects another.
#pragma once

#include <string>

#include "cpu/args.h"

namespace fastrnn {

// Names from the lowest to the highest; `supported` reports whether this processor can run them.
int capability_count();
const char* capability_name(int k);
bool capability_supported(int k);

// The current one. The environment is read at first use; an unknown or unsupported name is ignored and reported by
// capability_problem().
const char* capability();
const char* capability_problem();
// Returns false if the name is unknown or unsupported; then nothing changes.
bool set_capability(const char* name);

// Kernels of a cell for the current capability, or null if there is no such cell
const CellKernels* find_cell(const char* name);
// Adds the kernels of a custom cell from a shared object that includes custom_unit.h, or those of further dtypes of a
// known cell. Returns an empty string, or the problem. Loaded objects are never unloaded.
std::string load_cells(const char* path);
// Products for the current capability
const ProductKernels& product_kernels();
// The name of the k-th cell, or null
const char* cell_name(int k);

}  // namespace fastrnn
