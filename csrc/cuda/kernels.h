// The table of one cell's kernels, as the host sees it. Whoever launches them (cuda/launch.h on a GPU, the emulator of
// tests/cuda) fills it in with make_kernels. Streams are cudaStream_t, errors cudaError_t: this header needs no CUDA.
#pragma once

#include "cuda/args.h"
#include "simd/cell_traits.h"

namespace fastrnn::cuda {

enum class Format { kFloat32, kFloat64, kBFloat16, kFloat16, kTf32 };
constexpr int kFormats = 5;

using Stream = void*;
using Error = int;  // 0: none

// Which blocks a persistent kernel needs, and what the machine can hold of them.
enum class Through { kGrid, kCluster };

template <class Args>
struct PersistentKernel {
  int64_t (*shared_bytes)(const Tiling&) = nullptr;
  // Blocks that the whole machine holds at once (grid), or clusters (cluster); 0 if it holds none.
  int (*capacity)(const Tiling&, int* count) = nullptr;
  Error (*launch)(const Args&, Stream) = nullptr;
  int depth_block = 0;    // Tiling::depth is a multiple of it
  int operand_bytes = 0;  // of a number of the operand
  int widest = 0;         // numbers of a unit of a row in any array of a step
};

template <class Args>
struct StepKernel {
  // `k`: the time step, counted in the order that the pass computes them.
  Error (*launch)(const Args&, int64_t k, Stream) = nullptr;
};

struct FormatKernels {
  PersistentKernel<ForwardArgs>
      forward[2];  // by Through; none for double, and for cells without one product of h alone
  PersistentKernel<BackwardArgs> backward[2];
  // After the product of h; after that of W2, if there is one; and of a cell without products the whole sequence.
  StepKernel<ForwardArgs> begin, step, project, whole;
  StepKernel<BackwardArgs> begin_backward, project_backward, step_backward, initial, whole_backward;
};

struct CellKernels : CellTraits {
  const char* name;
  const FormatKernels* formats[kFormats];  // null: not compiled
};

// Changes with everything that kernels in another shared object (cuda/custom_unit.h) have in common with this one.
constexpr int kInterfaceVersion = 3;
constexpr int64_t kCellInterface =
    kInterfaceVersion + 16 * static_cast<int64_t>(sizeof(ForwardArgs) +
                                                  4096 * (sizeof(BackwardArgs) +
                                                          4096 * (sizeof(FormatKernels) + 4096 * sizeof(CellKernels))));

}  // namespace fastrnn::cuda
