// The cells that have kernels on a GPU. The build writes the table, a source file with a line for each cell.
#pragma once

#include "cuda/kernels.h"

namespace fastrnn::cuda {

struct RegistryEntry {
  const char* cell;
  const CellKernels* (*kernels)();
};

extern const RegistryEntry kRegistry[];  // ends with a null cell

// Null if there is no such cell.
const CellKernels* find_cell(const char* name);
// The k-th cell's name, by alphabet; null past the last.
const char* cell_name(int k);

}  // namespace fastrnn::cuda

#define FASTRNN_DECLARE_CELL(cell)     \
  namespace fastrnn::cuda {            \
  const CellKernels* cell##_kernels(); \
  }
#define FASTRNN_REGISTRY_BEGIN \
  namespace fastrnn::cuda {    \
  const RegistryEntry kRegistry[] = {
#define FASTRNN_REGISTER_CELL(cell) {#cell, &cell##_kernels},
#define FASTRNN_REGISTRY_END \
  {                          \
    nullptr, nullptr         \
  }                          \
  }                          \
  ;                          \
  }
