// Choice of the driver of a call, and division of a persistent one into blocks: clusters if they hold the weights, else
// the grid, else step by step. Decided only here.
#pragma once

#include <string>

#include "cuda/kernels.h"

namespace fastrnn::cuda {

enum class Driver { kAuto, kStepwise, kGrid, kCluster };

const char* driver_name(Driver driver);
// Returns false for an unknown name.
bool driver_named(const std::string& name, Driver* driver);

// Properties of a GPU that the choice depends on; for a slice of a GPU (MIG) those of the slice
struct Machine {
  int processors;        // streaming multiprocessors
  int64_t shared_bytes;  // limit for one block
  int major;             // compute capability
  int largest_cluster;   // 0: no clusters
  int minor = 0;

  int capability() const { return 10 * major + minor; }
};

struct Problem {
  int64_t steps, batch, hidden;
  int recurrent, second, states;  // of the cell: R, R2, S
  bool projection, backward;
  int unit_slices = 0, row_slices = 0;  // requested for a persistent driver (units are rounded); 0: by the rule
};

struct Choice {
  Driver driver = Driver::kStepwise;
  Tiling tiling{};
  std::string reason;    // for this choice, or why the requested driver cannot run
  bool possible = true;  // false: `wanted` cannot run
};

// `kernels`: of the dtype, with nulls if it has no persistent ones. A kernel's `capacity` queries the GPU, and is
// called last.
template <class Args>
Choice choose(const PersistentKernel<Args> (&kernels)[2], const Problem& problem, const Machine& machine,
              Driver wanted);

}  // namespace fastrnn::cuda
