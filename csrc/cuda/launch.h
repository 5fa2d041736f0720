// Launching on a GPU; compiled only by nvcc.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "cuda/table.h"

namespace fastrnn::cuda {

template <class Kernel>
__global__ void __launch_bounds__(kThreads, 1) persistent_entry(const __grid_constant__ typename Kernel::Args a) {
#if __CUDA_ARCH__ < 900
  if constexpr (Kernel::Through::kCluster) return;  // never launched
#endif
  Block block;
  Kernel::run(block, a);
}

constexpr int kStepThreads = 128;

template <class Kernel>
__global__ void __launch_bounds__(kStepThreads)
    step_entry(const __grid_constant__ typename Kernel::Args a, const int64_t k) {
  Block block;
  Kernel::run(block, a, k);
}

struct GpuLauncher {
  // A configuration with its attributes; not copyable, because the attributes must outlive the launch.
  struct Configured {
    cudaLaunchConfig_t config{};
    cudaLaunchAttribute attributes[1]{};

    Configured(const Tiling& t, int64_t shared, cudaStream_t stream) {
      config.gridDim = dim3(static_cast<unsigned>(t.unit_slices), static_cast<unsigned>(t.row_slices));
      config.blockDim = dim3(kThreads);
      config.dynamicSmemBytes = static_cast<size_t>(shared);
      config.stream = stream;
      config.attrs = attributes;
      config.numAttrs = 1;
      if (t.cluster) {
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim = {static_cast<unsigned>(t.unit_slices), 1, 1};
      } else {
        attributes[0].id = cudaLaunchAttributeCooperative;
        attributes[0].val.cooperative = 1;
      }
    }
    Configured(const Configured&) = delete;
    Configured& operator=(const Configured&) = delete;
  };

  // Sets a kernel's limits to what the current device allows, once: launches then need no further call, and concurrent
  // launches cannot change each other's setting. Each launch requests the actual size.
  template <class Kernel>
  static cudaError_t prepare(bool cluster) {
    static std::atomic<uint64_t> prepared{0};  // one bit for each device
    int device = 0, most = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;  // further devices are set every time
    if ((prepared.load() & bit) != 0) return cudaSuccess;
    const auto entry = reinterpret_cast<const void*>(&persistent_entry<Kernel>);
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error == cudaSuccess && cluster) {
      error = cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
    if (error == cudaSuccess) prepared.fetch_or(bit);
    return error;
  }

  template <class Kernel>
  static int capacity(const Tiling& t, int* count) {
    const int64_t shared = Kernel::shared_bytes(t);
    *count = 0;
    cudaError_t error = prepare<Kernel>(t.cluster);
    if (error != cudaSuccess) return error;
    if (t.cluster) {
      Configured launch(t, shared, nullptr);
      return cudaOccupancyMaxActiveClusters(count, &persistent_entry<Kernel>, &launch.config);
    }
    int each = 0, device = 0, processors = 0;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, &persistent_entry<Kernel>, kThreads,
                                                          static_cast<size_t>(shared));
    if (error == cudaSuccess) error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    *count = each * processors;
    return error;
  }

  template <class Kernel>
  static Error persistent(const typename Kernel::Args& a, Stream stream) {
    const int64_t shared = Kernel::shared_bytes(a.tiling);
    const cudaError_t error = prepare<Kernel>(a.tiling.cluster);
    if (error != cudaSuccess) return error;
    Configured launch(a.tiling, shared, static_cast<cudaStream_t>(stream));
    return cudaLaunchKernelEx(&launch.config, &persistent_entry<Kernel>, a);
  }

  // A block covers one batch row, so that threads need no division; x is the grid's widest dimension.
  template <class Kernel>
  static Error step(const typename Kernel::Args& a, int64_t k, int64_t width, Stream stream) {
    const dim3 grid(static_cast<unsigned>(a.rows.batch),
                    static_cast<unsigned>((width + kStepThreads - 1) / kStepThreads));
    step_entry<Kernel><<<grid, kStepThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, k);
    return cudaGetLastError();
  }
};

}  // namespace fastrnn::cuda
