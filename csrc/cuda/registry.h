// The cells that have kernels on a GPU. The build writes the table, a source file with a line for each cell; those of a
// user's own are loaded from shared objects.
#pragma once

#include <string>

#include "cuda/kernels.h"

namespace fastrnn::cuda {

struct RegistryEntry {
  const char* cell;
  const CellKernels* (*kernels)();
};

extern const RegistryEntry kRegistry[];  // ends with a null cell

// Null if there is no such cell. `capability`: of the GPU, 10 times its compute capability (80, 90).
const CellKernels* find_cell(const char* name, int capability);
// The k-th built-in cell's name, by alphabet; null past the last.
const char* cell_name(int k);

// Adds a user's cell out of a shared object (cuda/custom_unit.h) that was compiled for GPUs of that capability, or
// formats to one that is there. Returns what is wrong with it, or an empty string.
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
