#include "cpu/dispatch.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <mutex>

#include "cpu/registry.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if FASTRNN_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastrnn {

namespace {

#if defined(__x86_64__)
constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};
enum { kAvx2 = 1, kAvx512, kAvx512BFloat16, kAmx };
#else
constexpr const char* kNames[] = {"baseline"};
#endif
constexpr int kCount = sizeof(kNames) / sizeof(kNames[0]);

const char* problem = "";

// Products of bfloat16 on vectors; a processor that has them has those of bytes too.
bool multiplies_bfloat16() {
#if FASTRNN_HAS_AVX512_BF16
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kVectorBFloat16 = 1u << 5, kVectorBytes = 1u << 11;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (c & kVectorBytes) == 0) return false;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kVectorBFloat16) != 0;
#else
  return false;
#endif
}

// Return true if the bfloat16 product instruction does more arithmetic per cycle than that of float32: twice as much on
// AMD, half as much on Intel, where AMX is meant for it.
bool bfloat16_pays() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd") != 0;
#else
  return false;
#endif
}

// Return true if the processor has AMX, the matrix unit of x86-64, and the system permits it to this process: its
// registers are 8 KiB a thread, which Linux allocates only on request (once, for all threads).
bool ask_for_matrix_unit() {
#if defined(FASTRNN_EMULATE_MATRIX_UNIT)
  return multiplies_bfloat16();
#elif FASTRNN_HAS_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTile = 1u << 24, kTileBFloat16 = 1u << 22;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTile) == 0 || (d & kTileBFloat16) == 0) return false;
  if (!multiplies_bfloat16()) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#if defined(__x86_64__)
// Return true for conversion of float16, which neither gcc 10 nor clang 14 can query by name.
bool converts_float16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kConverts = 1u << 29;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & kConverts) != 0;
}
#endif

int find(const char* name) {
  for (int k = 0; k < kCount; ++k) {
    if (strcmp(kNames[k], name) == 0 && capability_supported(k)) return k;
  }
  return -1;
}

int first_choice() {
  int best = 0;
  for (int k = 0; k < kCount; ++k) {
    const bool slow = strcmp(kNames[k], "avx512_bf16") == 0 && !bfloat16_pays();
    if (capability_supported(k) && !slow) best = k;
  }
  const char* wanted = getenv("FASTRNN_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return best;
  const int k = find(wanted);
  if (k < 0) problem = "FASTRNN_CPU_CAPABILITY names an instruction set that is unknown or that this processor lacks";
  return k < 0 ? best : k;
}

// Cells from shared objects, the latest first. Read without a lock, so entries never change.
struct LoadedCell {
  const char *cell, *capability;
  CellKernels kernels;
  const LoadedCell* next;
};
std::atomic<const LoadedCell*> loaded{nullptr};

const LoadedCell* loaded_cell(const char* name, const char* capability) {
  const LoadedCell* c = loaded;
  while (c != nullptr && (strcmp(c->cell, name) != 0 || strcmp(c->capability, capability) != 0)) c = c->next;
  return c;
}

std::atomic<int>& current() {
  static std::atomic<int> chosen{first_choice()};
  return chosen;
}

}  // namespace

int capability_count() { return kCount; }
const char* capability_name(int k) { return kNames[k]; }

bool capability_supported(int k) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (k >= kAvx2 && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_float16())) {
    return false;
  }
  if (k >= kAvx512 && !(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))) {
    return false;
  }
  static const bool matrix_unit = ask_for_matrix_unit();
  if (k == kAvx512BFloat16 && !multiplies_bfloat16()) return false;
  if (k == kAmx && !matrix_unit) return false;
#endif
  return k >= 0 && k < kCount;
}

const char* capability() { return kNames[current().load()]; }
const char* capability_problem() {
  current();
  return problem;
}

bool set_capability(const char* name) {
  const int k = find(name);
  if (k < 0) return false;
  current() = k;
  return true;
}

const CellKernels* find_cell(const char* name) {
  const char* set = capability();
  for (const RegistryEntry* e = kRegistry; e->cell != nullptr; ++e) {
    if (strcmp(e->cell, name) == 0 && strcmp(e->capability, set) == 0) return e->kernels();
  }
  const LoadedCell* found = loaded_cell(name, set);
  return found != nullptr ? &found->kernels : nullptr;
}

std::string load_cells(const char* path) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  // The kernels call back into this library, which Python loaded without exporting its symbols globally.
  Dl_info self{};
  if (dladdr(reinterpret_cast<void*>(&load_cells), &self) == 0 ||
      dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL) == nullptr) {
    return "this library cannot be found among those that are loaded";
  }
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto* version = static_cast<const int*>(dlsym(library, "fastrnn_cell_interface"));
  const auto* entry = static_cast<const RegistryEntry*>(dlsym(library, "fastrnn_cells"));
  if (version == nullptr || entry == nullptr || *version != kCellInterface)
    return "it is of another version of fastrnn";
  for (; entry->cell != nullptr; ++entry) {
    const LoadedCell* before = loaded_cell(entry->cell, entry->capability);
    auto* cell = new LoadedCell{entry->cell, entry->capability, *entry->kernels(), loaded.load()};
    for (int k = 0; before != nullptr && k < kFormats; ++k) {
      if (cell->kernels.forward[k] == nullptr) {
        cell->kernels.forward[k] = before->kernels.forward[k];
        cell->kernels.backward[k] = before->kernels.backward[k];
      }
    }
    loaded = cell;
  }
  return "";
}

// For C++ programs, which find it by dlsym. Returns null, or the problem (valid until this thread's next call).
extern "C" __attribute__((visibility("default"))) const char* fastrnn_load_cells(const char* path) {
  thread_local std::string problem_of_load;
  problem_of_load = load_cells(path);
  return problem_of_load.empty() ? nullptr : problem_of_load.c_str();
}

const ProductKernels& product_kernels() { return *kProducts[current().load()].kernels(); }

const char* cell_name(int k) {
  for (const RegistryEntry* e = kRegistry; e->cell != nullptr; ++e) {
    if (strcmp(e->capability, kNames[0]) == 0 && k-- == 0) return e->cell;
  }
  return nullptr;
}

}  // namespace fastrnn
