// Which instruction set is used: the best this machine has, unless FASTRNN_CPU_CAPABILITY or a caller says otherwise.
#pragma once

#include <string>

#include "cpu/args.h"

namespace fastrnn {

// Names from the poorest to the best; `supported` says whether this processor can run them.
int capability_count();
const char* capability_name(int k);
bool capability_supported(int k);

// The one in force. The environment is read at first use; a name that is unknown or unsupported there is ignored and
// reported by capability_problem().
const char* capability();
const char* capability_problem();
// False if the name is unknown or unsupported; nothing changes then.
bool set_capability(const char* name);

// Kernels of a cell for the capability in force, or null if there is no such cell.
const CellKernels* find_cell(const char* name);
// Adds the kernels of a user's cell from a shared object that custom_unit.h was compiled into, or those of further
// number formats of one that is known. An empty string, or what is wrong. What is loaded stays.
std::string load_cells(const char* path);
// Products for the capability in force.
const ProductKernels& product_kernels();
// The k-th cell's name, or null.
const char* cell_name(int k);

}  // namespace fastrnn
