// The table of one cell's kernels, as the host sees it. Whoever launches them (cuda/launch.h on a GPU, the emulator of
// tests/cuda) fills it in with make_kernels. Streams are cudaStream_t, errors cudaError_t: this header needs no CUDA.
#pragma once

#include "cuda/args.h"

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
  bool tensor_cores = false;
};

template <class Args>
struct StepKernel {
  Error (*launch)(const Args&, const Position&, Stream) = nullptr;
  // For a captured graph: the arguments lie in device memory and may change before the next launch; `shape` says B, H
  // and P, which may not.
  Error (*launch_at)(const Args* device, const Args& shape, const Position&, Stream) = nullptr;
};

struct FormatKernels {
  PersistentKernel<ForwardArgs> forward[2];  // by Through; none for double
  PersistentKernel<BackwardArgs> backward[2];
  StepKernel<ForwardArgs> begin, step, project;
  StepKernel<BackwardArgs> begin_backward, project_backward, step_backward, initial;
};

struct CellKernels {
  const char* name;
  int gates, states, saved, split_from;
  bool reads_hidden;
  const FormatKernels* formats[kFormats];
};

}  // namespace fastrnn::cuda
