#include "cuda/registry.h"

#include <string.h>

namespace fastrnn::cuda {

const CellKernels* find_cell(const char* name) {
  for (const RegistryEntry* entry = kRegistry; entry->cell != nullptr; ++entry) {
    if (strcmp(entry->cell, name) == 0) return entry->kernels();
  }
  return nullptr;
}

const char* cell_name(int k) {
  if (k < 0) return nullptr;
  const RegistryEntry* entry = kRegistry;
  while (k > 0 && entry->cell != nullptr) ++entry, --k;
  return entry->cell;
}

}  // namespace fastrnn::cuda
