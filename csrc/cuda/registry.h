// Cells with kernels for GPUs. The build writes the table, a source file with a line for each cell; custom cells are
// loaded from shared objects.
#pragma once

#include <string>

#include "cuda/kernels.h"

namespace fastrnn::cuda {

struct RegistryEntry {
  const char* cell;
  const CellKernels* (*kernels)();
};

extern const RegistryEntry kRegistry[];  // ends with a null cell

// Null if there is no such cell. `capability`: 10 times the compute capability of the GPU (80, 90)
const CellKernels* find_cell(const char* name, int capability);
// The k-th built-in cell's name in alphabetical order; null past the last
const char* cell_name(int k);

// Adds a custom cell from a shared object (cuda/custom_unit.h) compiled for GPUs of that capability, or further dtypes
// of a known cell. Returns the problem, or an empty string.
std::string load_cell(const char* path, int capability);

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
