// Table of one cell's kernels for the host. The code that launches them (cuda/launch.h on a GPU, the emulator of
// tests/cuda) fills it with make_kernels. Streams are cudaStream_t, errors cudaError_t: this header needs no CUDA.
#pragma once

#include "cuda/args.h"
#include "cuda/sizes.h"
#include "simd/cell_traits.h"

namespace fastrnn::cuda {

enum class Format { kFloat32, kFloat64, kBFloat16, kFloat16, kTf32 };
constexpr int kFormats = 5;

using Stream = void*;
using Error = int;  // 0: none

// Kind of exchange of a persistent kernel, and the blocks that the GPU can hold
enum class Through { kGrid, kCluster };

template <class Args>
struct PersistentKernel {
  int64_t (*shared_bytes)(const Tiling&) = nullptr;
  // Number of blocks (grid) or clusters (cluster) that fit on the GPU at once; 0 if none fits
  int (*capacity)(const Tiling&, int* count) = nullptr;
  Error (*launch)(const Args&, Stream) = nullptr;
  // Tilings that a faster kernel was compiled for
  const CompiledTiling* compiled = nullptr;
  int compiled_count = 0;
  int depth_block = 0;    // Tiling::depth is a multiple of it
  int operand_bytes = 0;  // size of a number of the operand
  int widest = 0;         // most numbers per unit and row in any array of a step
};

template <class Args>
struct StepKernel {
  // `k`: the index of the time step in the order of computation
  Error (*launch)(const Args&, int64_t k, Stream) = nullptr;
};

struct FormatKernels {
  PersistentKernel<ForwardArgs>
      forward[2];  // by Through; none for double, and for cells with other products than one of h
  PersistentKernel<BackwardArgs> backward[2];
  // After the product of h; after that of W2, if any; and for a cell without products the whole sequence
  StepKernel<ForwardArgs> begin, step, project, whole;
  StepKernel<BackwardArgs> begin_backward, project_backward, step_backward, initial, whole_backward;
};

struct CellKernels : CellTraits {
  const char* name;
  const FormatKernels* formats[kFormats];  // null: not compiled
};

// Incremented with every change of the interface to kernels in other shared objects (cuda/custom_unit.h)
constexpr int kInterfaceVersion = 4;
constexpr int64_t kCellInterface =
    kInterfaceVersion + 16 * static_cast<int64_t>(sizeof(ForwardArgs) +
                                                  4096 * (sizeof(BackwardArgs) +
                                                          4096 * (sizeof(FormatKernels) + 4096 * sizeof(CellKernels))));

}  // namespace fastrnn::cuda
