#include "cuda/plan.h"

#include <algorithm>
#include <limits>

namespace fastrnn::cuda {

namespace {

// Thresholds of the rule. They have not been tuned on a GPU yet: benchmarks/gpu_run.sh compares the drivers.
constexpr int64_t kLeastSteps = 3;     // below, the kernel's start costs more than it saves
constexpr int64_t kClusterUnits = 16;  // units of a block before a cluster uses one more
constexpr int64_t kMostRows = 512;     // rows of a group; beyond, cuBLAS products use the GPU better

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Return true if a kernel compiled for these sizes computes at most twice as much as needed.
bool suits(const CompiledTiling& c, int64_t hidden) { return hidden <= c.hidden && 2 * hidden > c.hidden; }

// The smallest compiled number of units from `units` on, else that number
template <class Args>
int64_t compiled_units(const PersistentKernel<Args>& kernel, int64_t units, int64_t hidden) {
  int64_t best = 0;
  for (int n = 0; n < kernel.compiled_count; ++n) {
    const CompiledTiling& c = kernel.compiled[n];
    if (c.units >= units && suits(c, hidden) && (best == 0 || c.units < best)) best = c.units;
  }
  return best > 0 ? best : units;
}

// Rounds rows and depth up to those that a kernel was compiled for.
template <class Args>
void use_compiled(const PersistentKernel<Args>& kernel, int64_t hidden, Tiling& t) {
  for (int n = 0; n < kernel.compiled_count; ++n) {
    const CompiledTiling& c = kernel.compiled[n];
    if (c.units != t.units || c.matrix_rows != t.matrix_rows || t.rows > c.rows || !suits(c, hidden)) continue;
    t.rows = c.rows;
    t.depth = c.depth;
    t.compiled = c.hidden;
    return;
  }
}

// A block's part of the matrix, and its division among warps
template <class Args>
Tiling tiling_of(const PersistentKernel<Args>& kernel, const Problem& p, int64_t units, int64_t rows, bool cluster) {
  Tiling t{};
  t.units = static_cast<int>(units);
  t.unit_slices = static_cast<int>(parts(p.hidden, units));
  t.rows = static_cast<int>(rows);
  t.row_slices = static_cast<int>(parts(p.batch, rows));
  t.matrix_rows = static_cast<int>(up(p.backward ? units : p.recurrent * units, 8));
  t.depth = up(p.backward ? p.recurrent * up(p.hidden, kGranule) : p.hidden, kernel.depth_block);
  t.cluster = cluster;
  use_compiled(kernel, p.hidden, t);
  t.warps_across = warps_across(t.matrix_rows);
  t.warps_deep = warps_deep(t.warps_across);
  t.shared_bytes = kernel.shared_bytes(t);
  return t;
}

// As many blocks in a group as the units need, and as many groups as fit. Rows and units are rounded to whole tiles; of
// two divisions with equal tiles the one on fewer multiprocessors is taken.
template <class Args>
Tiling cut(const PersistentKernel<Args>& kernel, const Problem& p, int processors, int largest_cluster) {
  const bool cluster = largest_cluster > 0;
  if (p.unit_slices > 0) {
    const int64_t units = up(parts(p.hidden, p.unit_slices), kGranule);
    return tiling_of(kernel, p, units, parts(p.batch, std::max(p.row_slices, 1)), cluster);
  }
  const int64_t most = std::min<int64_t>(processors, cluster ? largest_cluster : processors);
  const int64_t slices = std::min(most, parts(p.hidden, cluster ? kClusterUnits : int64_t{kGranule}));
  const int64_t units = compiled_units(kernel, up(parts(p.hidden, slices), kGranule), p.hidden);
  const int64_t groups = std::max<int64_t>(1, processors / parts(p.hidden, units));
  const int64_t rows = std::min(p.batch, up(parts(p.batch, groups), kTileColumns));
  return tiling_of(kernel, p, units, rows, cluster);
}

}  // namespace

const char* driver_name(Driver driver) {
  switch (driver) {
    case Driver::kStepwise:
      return "stepwise";
    case Driver::kGrid:
      return "grid";
    case Driver::kCluster:
      return "cluster";
    default:
      return "auto";
  }
}

bool driver_named(const std::string& name, Driver* driver) {
  for (Driver d : {Driver::kAuto, Driver::kStepwise, Driver::kGrid, Driver::kCluster}) {
    if (name == driver_name(d)) {
      *driver = d;
      return true;
    }
  }
  return false;
}

namespace {

// The reason why no persistent kernel can run the call on any GPU; empty if one can
template <class Args>
std::string obstacle(const PersistentKernel<Args>& kernel, const Problem& p) {
  if (p.projection) return "a projection needs a second product in every step";
  if (p.second > 0) return "the cell has a second product in every step";
  if (p.recurrent == 0) return "the cell has no recurrent product";
  if (kernel.launch == nullptr) return "there is no persistent kernel for this dtype";
  const double numbers = static_cast<double>(p.batch) * static_cast<double>(p.hidden) * kernel.widest;
  const double most = std::numeric_limits<int32_t>::max();
  if (numbers > most || static_cast<double>(p.steps) >= most) return "a step has more than 2^31 numbers";
  return "";
}

// The division of a persistent driver that fits the GPU, or the reason why there is none. If less than the whole GPU is
// available, the call is divided for that, and clusters become smaller.
template <class Args>
Choice persistent(const PersistentKernel<Args>& kernel, const Problem& p, const Machine& m, Driver driver) {
  const bool cluster = driver == Driver::kCluster;
  Choice choice;
  choice.driver = driver;
  choice.possible = false;
  choice.reason = obstacle(kernel, p);
  if (choice.reason.empty() && cluster && m.largest_cluster == 0) {
    choice.reason = "this GPU has no thread-block clusters (compute capability 9.0 and newer)";
  }
  if (!choice.reason.empty()) return choice;
  int processors = m.processors, largest = cluster ? m.largest_cluster : 0;
  while (processors > 0) {
    const Tiling t = cut(kernel, p, processors, largest);
    if (t.shared_bytes > m.shared_bytes || t.warps_across > kWarps) {
      if (choice.reason.empty()) choice.reason = "the recurrent weights do not fit into shared memory";
      return choice;
    }
    int capacity = 0;
    if (kernel.capacity(t, &capacity) != 0) capacity = 0;
    if (capacity >= (cluster ? t.row_slices : t.unit_slices * t.row_slices)) {
      choice.tiling = t;
      choice.possible = true;
      choice.reason = "the recurrent weights stay in shared memory";
      return choice;
    }
    choice.reason = "the GPU cannot hold all blocks at once";
    if (p.unit_slices > 0) return choice;
    const int left = capacity * (cluster ? t.unit_slices : 1);
    if (left > 0 && left < processors) {
      processors = left;
    } else if (cluster && t.unit_slices > 1) {
      largest = t.unit_slices / 2;
    } else {
      return choice;
    }
  }
  return choice;
}

// The reason why a persistent driver that could run the call is not used; empty if it is
std::string better_stepwise(const Problem& p, const Tiling& t) {
  if (p.steps < kLeastSteps) return "the sequence is short";
  if (t.rows > kMostRows) return "there are many rows";
  return "";
}

}  // namespace

template <class Args>
Choice choose(const PersistentKernel<Args> (&kernels)[2], const Problem& p, const Machine& m, Driver wanted) {
  Choice stepwise;
  stepwise.reason = "a product of cuBLAS and an element-wise kernel in every step";
  if (p.recurrent == 0) {
    stepwise.reason = "the cell has no recurrent product: one kernel for all steps, a thread for each unit";
    if (wanted == Driver::kAuto) return stepwise;
  }
  if (wanted == Driver::kStepwise) return stepwise;
  for (Driver driver : {Driver::kCluster, Driver::kGrid}) {
    if (wanted != Driver::kAuto && wanted != driver) continue;
    Choice choice = persistent(kernels[driver == Driver::kCluster], p, m, driver);
    if (wanted == driver) return choice;
    const std::string against = choice.possible ? better_stepwise(p, choice.tiling) : choice.reason;
    if (against.empty()) return choice;
    stepwise.reason += std::string("; no ") + driver_name(driver) + ": " + against;
  }
  return stepwise;
}

template Choice choose(const PersistentKernel<ForwardArgs> (&)[2], const Problem&, const Machine&, Driver);
template Choice choose(const PersistentKernel<BackwardArgs> (&)[2], const Problem&, const Machine&, Driver);

}  // namespace fastrnn::cuda
