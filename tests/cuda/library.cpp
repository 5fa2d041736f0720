// Interface for tests/harness/emulated.py: one layer in one direction, forward or backward, by one of the three
// drivers, on the emulated machine. Plain C names and structures, buffers from emulated_allocate.
#include <stdio.h>
#include <string.h>

#include <string>

#include "cuda/drivers.h"
#include "cuda/plan.h"
#include "launcher.h"
#include "memory.h"
#include "simd/activations.h"
#include "simd/compute.h"
#include "simd/scalar.h"
#include "tables.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

#define FASTRNN_EXPORT extern "C" __attribute__((visibility("default")))

// The same fields in the same order as in tests/harness/emulated.py. Enumerations are those of csrc/cuda.
struct Call {
  const char* cell;
  int64_t format, driver;
  int64_t unit_slices, row_slices, warps_deep;  // of a persistent driver; all 0: by csrc/cuda/plan.cpp
  int64_t T, B, H, P;
  const int64_t *offsets, *lengths;
  const bool* reset;
  int64_t reverse, training;
  const void *w_hh, *w_hr, *b_hh, *parameters, *initial[kMaxStates];
  void *gates, *extra, *cells, *unprojected, *y, *final_states[kMaxStates];
  const void *grad_y, *grad_final[kMaxStates];
  void *da, *drh, *dparameters, *grad_initial[kMaxStates], *restarts[kMaxStates], *dh;
};

struct Outcome {
  int64_t error, driver, possible;
  int64_t units, unit_slices, rows, row_slices, matrix_rows, depth, warps_across, warps_deep, shared_bytes, cluster;
  int64_t compiled;
  char text[1000];
};

namespace {

const CellKernels* find_cell(const char* name) {
  for (const CellKernels& cell : all_tables()) {
    if (strcmp(cell.name, name) == 0) return &cell;
  }
  return nullptr;
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

void* scratch(const char* name, int64_t bytes, bool zeros) {
  emulator::Buffer& buffer = emulator::memory().allocate(name, bytes, 16);
  if (zeros) {
    memset(buffer.begin, 0, static_cast<size_t>(bytes));
    buffer.written = true;
  }
  return buffer.begin;
}

// c (rows, n) = a (rows, k) · b, with b (n, k) or, not transposed, (k, n). Accesses no other rows.
template <class T>
void multiply(const void* a, const void* b, void* c, int64_t rows, int64_t n, int64_t k, bool transposed) {
  const T *left = static_cast<const T*>(a), *right = static_cast<const T*>(b);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += static_cast<double>(widen(left[i * k + l])) * widen(right[transposed ? j * k + l : l * n + j]);
      }
      static_cast<Compute<T>*>(c)[i * n + j] = static_cast<Compute<T>>(sum);
    }
  }
}
using Multiply = void (*)(const void*, const void*, void*, int64_t, int64_t, int64_t, bool);

Multiply multiply_of(Format format) {
  switch (format) {
    case Format::kFloat64:
      return multiply<double>;
    case Format::kBFloat16:
      return multiply<BFloat16>;
    case Format::kFloat16:
      return multiply<Float16>;
    default:
      return multiply<float>;
  }
}
int64_t bytes_of(Format format) {
  return format == Format::kFloat64 ? 8 : format == Format::kFloat32 || format == Format::kTf32 ? 4 : 2;
}

struct LoopLibrary : Library {
  Multiply function;
  const void *first, *second;
  int64_t RH, W, H, P;  // rows of the two matrices
  bool backward;
  StepMemory memory;

  void recurrent(int64_t rows) override {
    function(memory.operand, first, memory.product, rows, backward ? P : RH, backward ? RH : P, !backward);
    written(memory.product);
  }
  void projection(int64_t rows) override {
    function(memory.inner, second, memory.outer, rows, backward ? H : W, backward ? W : H, !backward);
    written(memory.outer);
  }
  static void written(void* p) { emulator::memory().find(p)->written = true; }
};

StepMemory step_memory(const Call& c, const CellKernels& cell, Format format, bool backward, int64_t W) {
  const int64_t T = bytes_of(format), C = T == 8 ? 8 : 4, RH = (cell.recurrent - cell.second) * c.H;
  StepMemory m{};
  if (RH > 0) m.product = scratch("product", c.B * (backward ? c.P : RH) * C, false);
  m.operand = scratch("operand", c.B * (backward ? RH : c.P) * T, false);
  if (W > 0) {
    m.inner = scratch("inner", c.B * (backward ? W : c.H) * T, false);
    m.outer = scratch("outer", c.B * (backward ? c.H : W) * C, false);
  }
  for (int s = 0; s < cell.states; ++s) m.states[s] = scratch("states", c.B * (s == 0 ? c.P : c.H) * C, false);
  return m;
}

template <class Args>
Args common_args(const Call& c) {
  Args a{};
  a.rows = {c.T, c.B, c.offsets, c.lengths, c.reset, c.reverse != 0};
  a.hidden = c.H;
  a.projected = c.P;
  a.w_hh = c.w_hh;
  a.parameters = c.parameters;
  a.gates = c.gates;
  a.extra = c.extra;
  a.cells = c.cells;
  a.y = c.y;
  for (int s = 0; s < kMaxStates; ++s) a.initial[s] = a.restart[s] = c.initial[s];
  return a;
}

void fill(const Call& c, ForwardArgs& a) {
  a.b_hh = c.b_hh;
  a.unprojected = c.unprojected;
  a.training = c.training != 0;
  for (int s = 0; s < kMaxStates; ++s) a.final_states[s] = c.final_states[s];
}
void fill(const Call& c, BackwardArgs& a) {
  a.grad_y = c.grad_y;
  a.unprojected = c.unprojected;
  a.da = c.da;
  a.drh = c.drh;
  a.dparameters = c.dparameters;
  a.dh = c.dh;
  a.projection = c.w_hr != nullptr;
  for (int s = 0; s < kMaxStates; ++s) {
    a.grad_final[s] = c.grad_final[s];
    a.grad_initial[s] = c.grad_initial[s];
    a.restarts[s] = c.restarts[s];
  }
}

Error whole(const FormatKernels& k, const ForwardArgs& a, const Counts& counts, Library& library) {
  return stepwise_forward(k, a, counts, library, nullptr);
}
Error whole(const FormatKernels& k, const BackwardArgs& a, const Counts& counts, Library& library) {
  return stepwise_backward(k, a, counts, library, nullptr);
}
template <class Args>
Error stepwise(const Call& c, const CellKernels& cell, Format format, Args& a) {
  constexpr bool kBackward = std::is_same_v<Args, BackwardArgs>;
  const FormatKernels& kernels = *cell.formats[static_cast<int>(format)];
  LoopLibrary library;
  library.function = multiply_of(format);
  library.first = c.w_hh;
  library.RH = (cell.recurrent - cell.second) * c.H;
  library.second = c.w_hr;
  library.W = c.w_hr != nullptr ? c.P : cell.second * c.H;
  if (cell.second > 0) library.second = static_cast<const char*>(c.w_hh) + library.RH * c.P * bytes_of(format);
  library.H = c.H;
  library.P = c.P;
  library.backward = kBackward;
  library.memory = a.memory = step_memory(c, cell, format, kBackward, library.W);
  Counts counts{nullptr, c.B};
  std::vector<int64_t> rows;
  if (c.offsets != nullptr) {
    for (int64_t t = 0; t < c.T; ++t) rows.push_back(c.offsets[t + 1] - c.offsets[t]);
    counts.counts = rows.data();
  }
  return whole(kernels, a, counts, library);
}

// Tiling as in plan.cpp, but with all numbers given: also tilings that it would not choose.
template <class Args>
Tiling tiling_of(const Call& c, const CellKernels& cell, const PersistentKernel<Args>& kernel, bool cluster) {
  const bool backward = std::is_same_v<Args, BackwardArgs>;
  Tiling t{};
  t.units = static_cast<int>((c.H + c.unit_slices - 1) / c.unit_slices);
  if (cluster) t.units = static_cast<int>(up(t.units, kGranule));
  t.unit_slices = static_cast<int>((c.H + t.units - 1) / t.units);
  t.rows = static_cast<int>((c.B + c.row_slices - 1) / c.row_slices);
  t.row_slices = static_cast<int>((c.B + t.rows - 1) / t.rows);
  t.matrix_rows = static_cast<int>(up(backward ? t.units : cell.recurrent * t.units, 8));
  t.depth = up(backward ? cell.recurrent * up(c.H, kGranule) : c.H, kernel.depth_block);
  t.warps_across = warps_across(t.matrix_rows);
  t.warps_deep = warps_deep(t.warps_across);
  if (c.warps_deep > 0 && c.warps_deep < t.warps_deep) t.warps_deep = static_cast<int>(c.warps_deep);
  t.cluster = cluster;
  t.shared_bytes = kernel.shared_bytes(t);
  return t;
}

template <class Args>
Error persistent(const PersistentKernel<Args>& kernel, const Tiling& t, Args& a) {
  a.tiling = t;
  if (!t.cluster) {
    const int64_t bytes = t.row_slices * 2 * up(t.rows, 8) * t.depth * kernel.operand_bytes;
    a.exchange.buffers = scratch("exchange", bytes, true);
    a.exchange.counters =
        static_cast<uint32_t*>(scratch("counters", t.row_slices * static_cast<int64_t>(sizeof(uint32_t)), true));
  }
  return kernel.launch(a, nullptr);
}

void tell(const Tiling& t, Outcome* o) {
  o->units = t.units;
  o->unit_slices = t.unit_slices;
  o->rows = t.rows;
  o->row_slices = t.row_slices;
  o->matrix_rows = t.matrix_rows;
  o->depth = t.depth;
  o->warps_across = t.warps_across;
  o->warps_deep = t.warps_deep;
  o->shared_bytes = t.shared_bytes;
  o->cluster = t.cluster;
  o->compiled = t.compiled;
}

template <class Args>
const PersistentKernel<Args> (&persistent_kernels(const FormatKernels& kernels))[2] {
  if constexpr (std::is_same_v<Args, BackwardArgs>) {
    return kernels.backward;
  } else {
    return kernels.forward;
  }
}

template <class Args>
Choice decide(const Call& c, const CellKernels& cell, Outcome* outcome) {
  const emulator::Settings& s = emulator::settings();
  const auto& kernels = persistent_kernels<Args>(*cell.formats[c.format]);
  const Driver wanted = static_cast<Driver>(c.driver);
  Choice choice;
  if (c.unit_slices > 0 && wanted != Driver::kStepwise) {
    choice.driver = wanted;
    choice.tiling = tiling_of(c, cell, kernels[wanted == Driver::kCluster], wanted == Driver::kCluster);
  } else {
    const Machine machine{s.processors, s.shared_bytes, s.largest_cluster > 0 ? 9 : 8, s.largest_cluster};
    const bool backward = std::is_same_v<Args, BackwardArgs>;
    const bool projection = c.P != c.H || c.w_hr != nullptr;
    const Problem problem{c.T, c.B, c.H, cell.recurrent, cell.second, cell.states, projection, backward};
    choice = choose(kernels, problem, machine, wanted);
  }
  tell(choice.tiling, outcome);
  outcome->driver = static_cast<int64_t>(choice.driver);
  outcome->possible = choice.possible;
  snprintf(outcome->text, sizeof(outcome->text), "%s", choice.reason.c_str());
  return choice;
}

template <class Args>
void run(const Call& c, Outcome* outcome) {
  *outcome = {};
  const CellKernels& cell = *find_cell(c.cell);
  const Choice choice = decide<Args>(c, cell, outcome);
  if (!choice.possible) return;
  Args a = common_args<Args>(c);
  fill(c, a);
  emulator::forget_failure();
  if (choice.driver == Driver::kStepwise) {
    outcome->error = stepwise(c, cell, static_cast<Format>(c.format), a);
  } else {
    const auto& kernels = persistent_kernels<Args>(*cell.formats[c.format]);
    outcome->error = persistent(kernels[choice.driver == Driver::kCluster], choice.tiling, a);
  }
  if (outcome->error == 0) {
    const std::string damaged = emulator::memory().damaged();
    if (!damaged.empty()) snprintf(outcome->text, sizeof(outcome->text), "written beside %s", damaged.c_str());
    outcome->error = damaged.empty() ? 0 : emulator::kFailed;
  } else {
    snprintf(outcome->text, sizeof(outcome->text), "%s", emulator::failure().c_str());
  }
}

}  // namespace

FASTRNN_EXPORT void* emulated_allocate(const char* name, int64_t bytes, int64_t alignment, int64_t written) {
  emulator::Buffer& buffer = emulator::memory().allocate(name, bytes, alignment);
  buffer.written = written != 0;
  return buffer.begin;
}
FASTRNN_EXPORT void emulated_release() { emulator::memory().shrink(0); }
FASTRNN_EXPORT void emulated_machine(int64_t processors, int64_t shared_bytes, int64_t largest_cluster, int64_t busy,
                                     int64_t seed) {
  emulator::settings() = {static_cast<int>(processors), shared_bytes, static_cast<int>(largest_cluster),
                          static_cast<int>(busy), static_cast<uint64_t>(seed)};
}
// Returns the driver of that name, or -1.
FASTRNN_EXPORT int64_t emulated_driver(const char* name) {
  Driver driver;
  return driver_named(name, &driver) ? static_cast<int64_t>(driver) : -1;
}
// Writes G, S, K, the first product that is split, R, R2, Q; returns 0 if there is no such cell.
FASTRNN_EXPORT int64_t emulated_cell(const char* name, int64_t* numbers) {
  const CellKernels* cell = find_cell(name);
  if (cell == nullptr) return 0;
  numbers[0] = cell->gates;
  numbers[1] = cell->states;
  numbers[2] = cell->saved;
  numbers[3] = cell->split_from;
  numbers[4] = cell->recurrent;
  numbers[5] = cell->second;
  numbers[6] = cell->parameters;
  return 1;
}
// y = 1 / b of `count` numbers, as the activations compute it, or its initial approximation.
FASTRNN_EXPORT void emulated_reciprocal(const float* b, float* y, int64_t count, int64_t refined) {
  for (int64_t k = 0; k < count; ++k) {
    y[k] = refined != 0 ? reciprocal(Vec<float>(b[k])).v : approximate_reciprocal(b[k]);
  }
}
// y = sigmoid(x) (which = 0) or tanh(x) of `count` numbers, as cells compute it
FASTRNN_EXPORT void emulated_activation(const float* x, float* y, int64_t count, int64_t which) {
  for (int64_t k = 0; k < count; ++k) {
    y[k] = which == 0 ? Exact::sigmoid(Vec<float>(x[k])).v : Exact::tanh(Vec<float>(x[k])).v;
  }
}
// Writes the counters since the last call, in the order of emulator::Counted, and resets them.
FASTRNN_EXPORT void emulated_counted(int64_t* numbers) {
  emulator::Counted& counted = emulator::counted();
  memcpy(numbers, &counted, sizeof(counted));
  counted = {};
}
FASTRNN_EXPORT void emulated_forward(const Call* call, Outcome* outcome) { run<ForwardArgs>(*call, outcome); }
FASTRNN_EXPORT void emulated_backward(const Call* call, Outcome* outcome) { run<BackwardArgs>(*call, outcome); }
// Only chooses the driver. `call` needs sizes, dtype, driver and, if there is a projection, w_hr.
FASTRNN_EXPORT void emulated_choose(const Call* call, int64_t backward, Outcome* outcome) {
  *outcome = {};
  const CellKernels& cell = *find_cell(call->cell);
  if (backward != 0) {
    decide<BackwardArgs>(*call, cell, outcome);
  } else {
    decide<ForwardArgs>(*call, cell, outcome);
  }
}
