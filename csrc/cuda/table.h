// Fills in a cell's table of kernels for one format. `Launcher` says how a kernel is launched:
//   template <class Kernel> static Error persistent(const Args&, Stream)
//   template <class Kernel> static Error capacity(const Tiling&, int* count)
//   template <class Kernel> static Error step(const Args&, const Position&, int64_t threads, Stream)
//   template <class Kernel> static Error step_at(const Args* device, const Position&, int64_t threads, Stream)
#pragma once

#include "cuda/kernels.h"
#include "cuda/persistent.h"
#include "cuda/stepwise.h"

namespace fastrnn::cuda {

template <class Launcher, class Kernel, class Format>
PersistentKernel<typename Kernel::Args> persistent_kernel() {
  using Args = typename Kernel::Args;
  PersistentKernel<Args> kernel;
  kernel.shared_bytes = [](const Tiling& t) { return Kernel::shared_bytes(t); };
  kernel.capacity = [](const Tiling& t, int* count) { return Launcher::template capacity<Kernel>(t, count); };
  kernel.launch = [](const Args& a, Stream stream) { return Launcher::template persistent<Kernel>(a, stream); };
  kernel.depth_block = Format::kBlock;
  kernel.operand_bytes = static_cast<int>(sizeof(typename Format::Storage));
  kernel.tensor_cores = Format::kTensorCores;
  return kernel;
}

enum class Width { kHidden, kProjected, kWidest };

template <Width width, class Args>
int64_t threads_of(const Args& a) {
  const int64_t widest = a.projected > a.hidden ? a.projected : a.hidden;
  return a.rows.batch * (width == Width::kHidden ? a.hidden : width == Width::kProjected ? a.projected : widest);
}

template <class Launcher, class Kernel, Width width>
StepKernel<typename Kernel::Args> step_kernel() {
  using Args = typename Kernel::Args;
  StepKernel<Args> kernel;
  kernel.launch = [](const Args& a, const Position& position, Stream stream) {
    return Launcher::template step<Kernel>(a, position, threads_of<width>(a), stream);
  };
  kernel.launch_at = [](const Args* device, const Args& shape, const Position& position, Stream stream) {
    return Launcher::template step_at<Kernel>(device, position, threads_of<width>(shape), stream);
  };
  return kernel;
}

// T: storage. Formats: those of the recurrent product, none or one.
template <class Launcher, class Cell, class T, class... Formats>
FormatKernels make_kernels() {
  FormatKernels kernels;
  using Steps = Stepwise<Cell, T>;
  kernels.begin = step_kernel<Launcher, typename Steps::Begin, Width::kWidest>();
  kernels.step = step_kernel<Launcher, typename Steps::Forward, Width::kHidden>();
  kernels.project = step_kernel<Launcher, typename Steps::Project, Width::kProjected>();
  kernels.begin_backward = step_kernel<Launcher, typename Steps::BeginBackward, Width::kWidest>();
  kernels.project_backward = step_kernel<Launcher, typename Steps::ProjectBackward, Width::kProjected>();
  kernels.step_backward = step_kernel<Launcher, typename Steps::Backward, Width::kHidden>();
  kernels.initial = step_kernel<Launcher, typename Steps::Initial, Width::kWidest>();
  ((kernels.forward[0] = persistent_kernel<Launcher, PersistentForward<Cell, Formats, ThroughGrid>, Formats>(),
    kernels.forward[1] = persistent_kernel<Launcher, PersistentForward<Cell, Formats, ThroughCluster>, Formats>(),
    kernels.backward[0] = persistent_kernel<Launcher, PersistentBackward<Cell, Formats, ThroughGrid>, Formats>(),
    kernels.backward[1] = persistent_kernel<Launcher, PersistentBackward<Cell, Formats, ThroughCluster>, Formats>()),
   ...);
  return kernels;
}

// The tf32 kernels differ from those of float32 in the persistent product alone.
template <class Launcher, class Cell>
CellKernels cell_table(const char* name) {
  static const FormatKernels single = make_kernels<Launcher, Cell, float, PlainFloat>();
  static const FormatKernels twice = make_kernels<Launcher, Cell, double>();
  static const FormatKernels brain = make_kernels<Launcher, Cell, BFloat16, TensorCores<BFloat16, MmaBFloat16>>();
  static const FormatKernels half = make_kernels<Launcher, Cell, Float16, TensorCores<Float16, MmaFloat16>>();
  static const FormatKernels tf32 = make_kernels<Launcher, Cell, float, TensorCores<float, MmaTf32>>();
  return {name,
          Cell::kGates,
          Cell::kStates,
          Cell::kSaved,
          Cell::kSplitFrom,
          Cell::kReadsHidden,
          {&single, &twice, &brain, &half, &tf32}};
}

}  // namespace fastrnn::cuda
