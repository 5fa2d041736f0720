// Which driver runs a call, and how a persistent one is cut into blocks: clusters if they hold the weights, else the
// grid, else step by step. The only place where that is decided.
#pragma once

#include <string>

#include "cuda/kernels.h"

namespace fastrnn::cuda {

enum class Driver { kAuto, kStepwise, kGrid, kCluster };

const char* driver_name(Driver driver);
// False for a name that is none.
bool driver_named(const std::string& name, Driver* driver);

// What the choice depends on of a machine; of a slice of one (MIG), its own numbers.
struct Machine {
  int processors;        // streaming multiprocessors
  int64_t shared_bytes;  // that one block may have
  int major;             // compute capability
  int largest_cluster;   // 0: no clusters
  int minor = 0;

  int capability() const { return 10 * major + minor; }
};

struct Problem {
  int64_t steps, batch, hidden;
  int recurrent, second, states;  // of the cell: R, R2, S
  bool projection, backward;
  int unit_slices = 0, row_slices = 0;  // of a persistent driver, asked for (units are rounded); 0: by the rule
};

struct Choice {
  Driver driver = Driver::kStepwise;
  Tiling tiling{};
  std::string reason;    // in words: of this choice, or why the driver that was asked for cannot be had
  bool possible = true;  // false: `wanted` cannot be had
};

// `kernels`: of the format, nulls where it has no persistent ones. `capacity` of a kernel asks the machine itself,
// last.
template <class Args>
Choice choose(const PersistentKernel<Args> (&kernels)[2], const Problem& problem, const Machine& machine,
              Driver wanted);

}  // namespace fastrnn::cuda
