#include "cuda/plan.h"

#include <algorithm>
#include <vector>

namespace fastrnn::cuda {

namespace {

// The model: microseconds of one step. What is not a product, by driver (a barrier and the way of the operand through
// it, or two launches), and the rates of a block's product and of its reading the operand. Estimates from published
// figures for an H100, to be replaced by measured ones (benchmarks/gpu_tune.py fits them and prints these lines); only
// the order of the drivers depends on them. benchmarks/gpu_model.py reads them here.
constexpr double kGridBarrier = 1.3, kClusterBarrier = 0.5, kLaunches = 5.0;
constexpr double kAlone = 0.15;        // a cluster of one block has nobody to wait for
constexpr double kTensorRate = 1.0e6;  // multiply-adds a microsecond, of a block
constexpr double kPlainRate = 1.5e5;
constexpr double kSharedRate = 2.0e5;   // bytes a microsecond that a block reads of its matrix, once for each pass
constexpr double kOperandRate = 4.0e4;  // bytes a microsecond that a block reads of the operand, through L2
constexpr double kUnitRate = 2.0e3;     // units a microsecond, element-wise

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A block's part of the matrix, and how its warps share it.
Tiling cut(const Problem& p, int units, int unit_slices, int row_slices, int depth_block) {
  Tiling t{};
  t.units = units;
  t.unit_slices = unit_slices;
  t.rows = static_cast<int>((p.batch + row_slices - 1) / row_slices);
  t.row_slices = static_cast<int>((p.batch + t.rows - 1) / t.rows);
  t.matrix_rows = static_cast<int>(up(p.backward ? units : static_cast<int64_t>(p.recurrent) * units, 8));
  t.depth = up(p.backward ? p.recurrent * p.hidden : p.hidden, depth_block);
  const int tiles = (t.matrix_rows + kTileRows - 1) / kTileRows;
  t.warps_across = (tiles + kRowTiles - 1) / kRowTiles;
  t.warps_deep = std::max(1, kWarps / t.warps_across);
  return t;
}

double step_time(const Tiling& t, int operand_bytes, bool plain) {
  const double columns = static_cast<double>(up(t.rows, kTileColumns));
  const double depth = static_cast<double>(t.depth);
  const double product = static_cast<double>(up(t.matrix_rows, kTileRows)) * depth * columns;
  const double passes = static_cast<double>(up(t.rows, kTileColumns * kColumnTiles) / (kTileColumns * kColumnTiles));
  const double matrix = static_cast<double>(t.matrix_rows) * depth * operand_bytes * passes;
  // Warps side by side along the matrix's rows need the same numbers, and each reads them for itself.
  const double operand = depth * columns * operand_bytes * t.warps_across;
  const double exchange = !t.cluster ? kGridBarrier : t.unit_slices > 1 ? kClusterBarrier : kAlone;
  const double multiplied = std::max(product / (plain ? kPlainRate : kTensorRate), matrix / kSharedRate);
  return exchange + multiplied + (t.cluster ? 0.0 : operand / kOperandRate) +
         static_cast<double>(t.units) * t.rows / kUnitRate;
}

double stepwise_time(const Problem& p) {
  const double product = static_cast<double>(p.batch) * static_cast<double>(p.hidden * p.hidden) * p.recurrent;
  return kLaunches + product / (100 * kPlainRate);
}

struct Cut {
  Tiling tiling;
  double time;
};

// All ways to cut the problem that a block's warps and shared memory allow.
template <class Args>
std::vector<Cut> cuts(const PersistentKernel<Args>& kernel, const Problem& p, const Machine& m, bool cluster) {
  std::vector<Cut> found;
  const auto consider = [&](int unit_slices, int row_slices) {
    const int units = static_cast<int>(up((p.hidden + unit_slices - 1) / unit_slices, 8));
    const int slices = static_cast<int>((p.hidden + units - 1) / units);
    Tiling t = cut(p, units, slices, row_slices, kernel.depth_block);
    t.cluster = cluster;
    if (t.warps_across > kWarps) return;
    t.shared_bytes = kernel.shared_bytes(t);
    if (t.shared_bytes > m.shared_bytes) return;
    found.push_back({t, step_time(t, kernel.operand_bytes, !kernel.tensor_cores)});
  };
  if (p.unit_slices > 0) {
    consider(p.unit_slices, std::max(p.row_slices, 1));
  } else if (cluster) {
    for (int size = 1; size <= m.largest_cluster; size *= 2) {
      for (int rows = 1; rows * size <= m.processors; rows *= 2) consider(size, rows);
    }
  } else {
    const int64_t most = std::min<int64_t>(m.processors, (p.hidden + 7) / 8);
    for (int64_t slices = most; slices >= 1; slices = slices / 2) {
      for (int rows = 1; rows * slices <= m.processors; rows *= 2) consider(static_cast<int>(slices), rows);
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const Cut& a, const Cut& b) { return a.time < b.time; });
  return found;
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

// The fastest cut that the machine says it can hold, or why there is none.
template <class Args>
Choice persistent(const PersistentKernel<Args>& kernel, const Problem& p, const Machine& m, Driver driver) {
  Choice choice;
  choice.driver = driver;
  choice.possible = false;
  const bool cluster = driver == Driver::kCluster;
  if (p.projection) {
    choice.reason = "a projection needs a second product in every step";
  } else if (p.second > 0) {
    choice.reason = "the cell has a second product in every step";
  } else if (p.recurrent == 0) {
    choice.reason = "the cell has no recurrent product";
  } else if (kernel.launch == nullptr) {
    choice.reason = "there is no persistent kernel for this number format";
  } else if (cluster && m.largest_cluster == 0) {
    choice.reason = "this GPU has no thread-block clusters (compute capability 9.0 and newer)";
  } else {
    choice.reason = "the recurrent weights do not fit into shared memory";
    for (const Cut& cut : cuts(kernel, p, m, cluster)) {
      if (choice.possible && cut.time >= choice.microseconds) break;  // nor can any that follows be faster
      int capacity = 0;
      const int needed = cluster ? 1 : cut.tiling.unit_slices * cut.tiling.row_slices;
      if (kernel.capacity(cut.tiling, &capacity) != 0 || capacity < needed) {
        if (!choice.possible) choice.reason = "the GPU cannot hold all blocks at once";
        continue;
      }
      // Clusters that do not fit at once run one after the other.
      const double time = cut.time * (cluster ? (cut.tiling.row_slices + capacity - 1) / capacity : 1);
      if (choice.possible && time >= choice.microseconds) continue;
      choice.tiling = cut.tiling;
      choice.microseconds = time;
      choice.possible = true;
      choice.reason = "the recurrent weights stay in shared memory";
    }
  }
  return choice;
}

}  // namespace

template <class Args>
Choice choose(const PersistentKernel<Args> (&kernels)[2], const Problem& p, const Machine& m, Driver wanted) {
  Choice best;
  best.microseconds = stepwise_time(p);
  best.reason = "a product of the library and an element-wise kernel in every step";
  if (p.recurrent == 0) {
    best.microseconds = kLaunches / static_cast<double>(p.steps);
    best.reason = "the cell has no recurrent product: one kernel for all steps, a thread for each unit";
    if (wanted == Driver::kAuto) return best;
  }
  if (wanted == Driver::kStepwise) return best;
  for (Driver driver : {Driver::kGrid, Driver::kCluster}) {
    if (wanted != Driver::kAuto && wanted != driver) continue;
    Choice found = persistent(kernels[driver == Driver::kCluster], p, m, driver);
    if (wanted == driver) return found;
    if (found.possible && found.microseconds < best.microseconds) {
      best = std::move(found);
    } else if (!found.possible && best.driver == Driver::kStepwise) {
      best.reason += std::string("; no ") + driver_name(driver) + ": " + found.reason;
    }
  }
  return best;
}

template Choice choose(const PersistentKernel<ForwardArgs> (&)[2], const Problem&, const Machine&, Driver);
template Choice choose(const PersistentKernel<BackwardArgs> (&)[2], const Problem&, const Machine&, Driver);

}  // namespace fastrnn::cuda
