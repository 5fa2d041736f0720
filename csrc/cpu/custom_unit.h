// A custom cell as a shared object: its units (cpu/unit.h) for the requested instruction sets, and the table that
// load_cells() reads. Functions that kernels call are resolved in the library that loads it. The build writes
//   #define FASTRNN_CUSTOM_CELLS(entry) entry(my_cell, avx512, amx) …, "amx": the capability that it serves
// and includes this file in one source.
#pragma once

#include "cpu/registry.h"

#define FASTRNN_DECLARE_CUSTOM(cell, isa, as) FASTRNN_DECLARE_CELL(cell, isa)
#define FASTRNN_CUSTOM_ENTRY(cell, isa, as) {#cell, #as, &fastrnn::isa::cell##_kernels},

FASTRNN_CUSTOM_CELLS(FASTRNN_DECLARE_CUSTOM)

extern "C" {
__attribute__((visibility("default"))) extern const int fastrnn_cell_interface;
__attribute__((visibility("default"))) extern const fastrnn::RegistryEntry fastrnn_cells[];
const int fastrnn_cell_interface = fastrnn::kCellInterface;
const fastrnn::RegistryEntry fastrnn_cells[] = {FASTRNN_CUSTOM_CELLS(FASTRNN_CUSTOM_ENTRY){nullptr, nullptr, nullptr}};
}
