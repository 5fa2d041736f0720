// Fills a cell's table of kernels for one dtype. `Launcher` defines how a kernel is launched:
//   template <class Kernel> static Error persistent(const Args&, Stream)
//   template <class Kernel> static Error capacity(const Tiling&, int* count)
//   template <class Kernel> static Error step(const Args&, int64_t k, int64_t width, Stream): `width` threads per row
#pragma once

#include "cuda/kernels.h"
#include "cuda/persistent.h"
#include "cuda/pushed.h"
#include "cuda/stepwise.h"

namespace fastrnn::cuda {

// A persistent kernel for any sizes, and those compiled for some tilings (cuda/sizes.h)
template <class Launcher, class Any, class... Compiled>
struct Variants {
  using Args = typename Any::Args;

  // The kernel compiled for the tiling, else that for any
  static Error capacity(const Tiling& t, int* count) {
    Error error = 0;
    if (((Compiled::Sizes::match(t) && (error = Launcher::template capacity<Compiled>(t, count), true)) || ...)) {
      return error;
    }
    return Launcher::template capacity<Any>(t, count);
  }
  static int64_t shared_bytes(const Tiling& t) {
    int64_t bytes = Any::shared_bytes(t);
    (void)((Compiled::Sizes::match(t) && (bytes = Compiled::shared_bytes(t), true)) || ...);
    return bytes;
  }
  static Error launch(const Args& a, Stream stream) {
    Error error = 0;
    if (((Compiled::Sizes::match(a.tiling) && (error = Launcher::template persistent<Compiled>(a, stream), true)) ||
         ...)) {
      return error;
    }
    return Launcher::template persistent<Any>(a, stream);
  }

  static PersistentKernel<Args> kernel() {
    static constexpr CompiledTiling kCompiled[sizeof...(Compiled) + 1] = {Compiled::Sizes::kTiling..., {}};
    PersistentKernel<Args> kernel;
    kernel.shared_bytes = shared_bytes;
    kernel.capacity = capacity;
    kernel.launch = launch;
    kernel.compiled = kCompiled;
    kernel.compiled_count = static_cast<int>(sizeof...(Compiled));
    kernel.depth_block = Any::kDepthBlock;
    kernel.operand_bytes = static_cast<int>(sizeof(typename Any::T));
    kernel.widest = Any::kWidest;
    return kernel;
  }
};

template <class Launcher, class Cell, class Format, template <class> class ThroughOf, class... Each>
void add_persistent(FormatKernels& kernels, Through through, SizesList<Each...>) {
  kernels.forward[static_cast<int>(through)] = Variants<Launcher, PersistentForward<Cell, Format, ThroughOf>,
                                                        PersistentForward<Cell, Format, ThroughOf, Each>...>::kernel();
  if constexpr (ThroughOf<Format>::kCluster) {
    kernels.backward[static_cast<int>(through)] = Variants<Launcher, PersistentBackward<Cell, Format, ThroughOf>,
                                                           PersistentPushedBackward<Cell, Format, Each>...>::kernel();
  } else {
    kernels.backward[static_cast<int>(through)] =
        Variants<Launcher, PersistentBackward<Cell, Format, ThroughOf>,
                 PersistentBackward<Cell, Format, ThroughOf, Each>...>::kernel();
  }
}

template <class Launcher, class Cell, class Format>
void add_format_persistent(FormatKernels& kernels) {
  using None = SizesList<>;
  constexpr bool kTensorCores = Format::kTensorCores, kWide = sizeof(typename Format::Storage) == 4;
  using ForGrid = std::conditional_t<kTensorCores && !kWide, GridSizes, None>;
  using ForCluster = std::conditional_t<kTensorCores, std::conditional_t<kWide, WideClusterSizes, ClusterSizes>, None>;
  add_persistent<Launcher, Cell, Format, ThroughGrid>(kernels, Through::kGrid, ForGrid());
  add_persistent<Launcher, Cell, Format, ThroughCluster>(kernels, Through::kCluster, ForCluster());
}

enum class Width { kHidden, kProjected, kWidest };

template <Width width, class Args>
int64_t width_of(const Args& a) {
  const int64_t widest = a.projected > a.hidden ? a.projected : a.hidden;
  return width == Width::kHidden ? a.hidden : width == Width::kProjected ? a.projected : widest;
}

template <class Launcher, class Kernel, Width width>
StepKernel<typename Kernel::Args> step_kernel() {
  using Args = typename Kernel::Args;
  StepKernel<Args> kernel;
  kernel.launch = [](const Args& a, int64_t k, Stream stream) {
    return Launcher::template step<Kernel>(a, k, width_of<width>(a), stream);
  };
  return kernel;
}

template <class Launcher, class Steps>
void add_steps(FormatKernels& kernels) {
  kernels.begin = step_kernel<Launcher, typename Steps::Begin, Width::kWidest>();
  kernels.begin_backward = step_kernel<Launcher, typename Steps::BeginBackward, Width::kWidest>();
  kernels.step_backward = step_kernel<Launcher, typename Steps::Backward, Width::kHidden>();
  kernels.initial = step_kernel<Launcher, typename Steps::Initial, Width::kWidest>();
  if constexpr (Steps::kSecond > 0) {
    kernels.step = step_kernel<Launcher, typename Steps::Inner, Width::kHidden>();
    kernels.project = step_kernel<Launcher, typename Steps::Second, Width::kHidden>();
    kernels.project_backward = step_kernel<Launcher, typename Steps::SecondBackward, Width::kHidden>();
  } else {
    kernels.step = step_kernel<Launcher, typename Steps::Forward, Width::kHidden>();
    kernels.project = step_kernel<Launcher, typename Steps::Project, Width::kProjected>();
    kernels.project_backward = step_kernel<Launcher, typename Steps::ProjectBackward, Width::kProjected>();
  }
}

// T: storage dtype. Formats: that of the recurrent product, none or one
template <class Launcher, class Cell, class T, class... Formats>
FormatKernels make_kernels() {
  FormatKernels kernels;
  using Steps = Stepwise<Cell, T>;
  if constexpr (Cell::kRecurrent == 0) {
    kernels.whole = step_kernel<Launcher, typename Steps::Whole, Width::kHidden>();
    kernels.whole_backward = step_kernel<Launcher, typename Steps::WholeBackward, Width::kHidden>();
  } else {
    add_steps<Launcher, Steps>(kernels);
  }
  if constexpr (Cell::kRecurrent > 0 && Cell::kSecond == 0) {
    (add_format_persistent<Launcher, Cell, Formats>(kernels), ...);
  }
  return kernels;
}

template <class Launcher, class Cell, unsigned formats, Format format, class T, class... Formats>
void add_format(CellKernels& cell) {
  if constexpr ((formats >> static_cast<int>(format) & 1) != 0) {
    static const FormatKernels kernels = make_kernels<Launcher, Cell, T, Formats...>();
    cell.formats[static_cast<int>(format)] = &kernels;
  }
}

// The tf32 kernels differ from those of float32 only in the persistent product. `formats`: which ones to compile, one
// bit each (Format); all for the built-in cells
template <class Launcher, class Cell, unsigned formats = (1u << kFormats) - 1>
CellKernels cell_table(const char* name) {
  static constexpr int kVectorBlocks[1] = {Cell::kSecond};
  CellKernels cell{{Cell::kGates, Cell::kRecurrent, Cell::kSecond, Cell::kStates, Cell::kSaved, Cell::kSplitFrom,
                    Cell::kParameters, Cell::kReadsHidden, Cell::kSecond > 0 ? 1 : 0, kVectorBlocks, 0, false},
                   name,
                   {}};
  add_format<Launcher, Cell, formats, Format::kFloat32, float, PlainFloat>(cell);
  add_format<Launcher, Cell, formats, Format::kFloat64, double>(cell);
  add_format<Launcher, Cell, formats, Format::kBFloat16, BFloat16, TensorCores<BFloat16, MmaBFloat16>>(cell);
  add_format<Launcher, Cell, formats, Format::kFloat16, Float16, TensorCores<Float16, MmaFloat16>>(cell);
  add_format<Launcher, Cell, formats, Format::kTf32, float, TensorCores<float, MmaTf32>>(cell);
  return cell;
}

}  // namespace fastrnn::cuda
