#include "cuda/registry.h"

#include <dlfcn.h>
#include <string.h>

#include <atomic>
#include <mutex>

namespace fastrnn::cuda {

namespace {

// Cells from shared objects, the latest first. Read without a lock, so entries never change.
struct LoadedCell {
  CellKernels kernels;
  int capability;
  const LoadedCell* next;
};
std::atomic<const LoadedCell*> loaded{nullptr};

const LoadedCell* loaded_cell(const char* name, int capability) {
  const LoadedCell* cell = loaded;
  while (cell != nullptr && (strcmp(cell->kernels.name, name) != 0 || cell->capability != capability)) {
    cell = cell->next;
  }
  return cell;
}

}  // namespace

const CellKernels* find_cell(const char* name, int capability) {
  for (const RegistryEntry* entry = kRegistry; entry->cell != nullptr; ++entry) {
    if (strcmp(entry->cell, name) == 0) return entry->kernels();
  }
  const LoadedCell* found = loaded_cell(name, capability);
  return found != nullptr ? &found->kernels : nullptr;
}

const char* cell_name(int k) {
  if (k < 0) return nullptr;
  const RegistryEntry* entry = kRegistry;
  while (k > 0 && entry->cell != nullptr) ++entry, --k;
  return entry->cell;
}

std::string load_cell(const char* path, int capability) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto* interface = static_cast<const int64_t*>(dlsym(library, "fastrnn_cuda_cell_interface"));
  const auto kernels = reinterpret_cast<const CellKernels* (*)()>(dlsym(library, "fastrnn_cuda_cell"));
  if (interface == nullptr || kernels == nullptr || *interface != kCellInterface) {
    return "it is of another version of fastrnn";
  }
  auto* cell = new LoadedCell{*kernels(), capability, loaded.load()};
  const LoadedCell* before = loaded_cell(cell->kernels.name, capability);
  for (int k = 0; before != nullptr && k < kFormats; ++k) {
    if (cell->kernels.formats[k] == nullptr) cell->kernels.formats[k] = before->kernels.formats[k];
  }
  loaded = cell;
  return "";
}

}  // namespace fastrnn::cuda
