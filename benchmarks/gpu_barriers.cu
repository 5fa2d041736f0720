// Lower limits of a time step of the persistent drivers on this GPU: barriers, the exchange of an operand through
// them, and, for comparison, kernel launches. Microseconds each, as a table or, with --json, as JSON.
//
//   nvcc -O3 -std=c++17 -arch=native -Icsrc -DFASTRNN_ISA_CUDA=1 -DFASTRNN_ISA_NAME=cuda benchmarks/gpu_barriers.cu
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace {

using fastrnn::cuda::Bits128;
using fastrnn::cuda::Block;

constexpr int kThreads = 256;
constexpr int kSteps = 2000;
constexpr int kRuns = 7;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gpu_barriers: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

struct Figure {
  std::string name;
  int blocks, bytes;  // blocks that take part in one barrier; of the operand, all blocks' parts together
  double microseconds;
};

// The barrier of the grid's driver: a counter in global memory.
__global__ void counter_barrier(uint32_t* counter, int steps) {
  Block block;
  for (int k = 1; k <= steps; ++k) {
    block.sync();
    if (block.thread() == 0) {
      fastrnn::cuda::announce(counter);
      fastrnn::cuda::await_count(counter, static_cast<uint32_t>(k) * gridDim.x);
    }
    block.sync();
  }
}

__global__ void library_barrier(int steps) {
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  for (int k = 0; k < steps; ++k) grid.sync();
}

// counter_barrier with an operand: each block writes its part, then all read the whole operand, bypassing the L1 cache.
__global__ void counter_exchange(uint32_t* counter, Bits128* operand, int count, int steps, uint32_t* sink) {
  Block block;
  const int part = count / static_cast<int>(gridDim.x), first = static_cast<int>(blockIdx.x) * part;
  uint32_t sum = 0;
  for (int k = 1; k <= steps; ++k) {
    Bits128* buffer = operand + k % 2 * count;
    for (int n = block.thread(); n < part; n += block.threads()) buffer[first + n] = {sum, sum, sum, sum};
    block.sync();
    if (block.thread() == 0) {
      fastrnn::cuda::announce(counter);
      fastrnn::cuda::await_count(counter, static_cast<uint32_t>(k) * gridDim.x);
    }
    block.sync();
    for (int n = block.thread(); n < count; n += block.threads()) sum += fastrnn::cuda::load_fresh(buffer + n).x;
  }
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void cluster_barrier(int steps) {
  Block block;
  for (int k = 0; k < steps; ++k) {
    block.cluster_arrive();
    block.cluster_wait();
  }
}

// Each block pushes its part into the shared memory of all, then all read their own copy.
__global__ void cluster_exchange(int count, int size, int steps, uint32_t* sink) {
  Block block;
  Bits128* operand = reinterpret_cast<Bits128*>(block.shared());
  const int part = count / size, first = block.rank() * part;
  uint32_t sum = 0;
  for (int k = 0; k < steps; ++k) {
    Bits128* buffer = operand + k % 2 * count;
    for (int n = block.thread(); n < part; n += block.threads()) {
      for (int r = 0; r < size; ++r) *block.of_rank(buffer + first + n, r) = {sum, sum, sum, sum};
    }
    block.cluster_arrive();
    block.cluster_wait();
    for (int n = block.thread(); n < count; n += block.threads()) sum += buffer[n].x;
  }
  // No block may exit while others may still write into its memory.
  block.cluster_arrive();
  block.cluster_wait();
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void nothing() {}

class Benchmark {
 public:
  Benchmark() {
    check(cudaGetDeviceProperties(&machine_, 0), "cudaGetDeviceProperties");
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    check(cudaMalloc(&counter_, sizeof(uint32_t)), "cudaMalloc");
    check(cudaMalloc(&operand_, 2 << 20), "cudaMalloc");
    check(cudaMalloc(&sink_, sizeof(uint32_t) * kThreads * 4096), "cudaMalloc");
  }

  void run() {
    const int all = machine_.multiProcessorCount;
    for (int blocks : {8, 32, 64, all}) {
      if (blocks > all) continue;
      grid("counter barrier", blocks, 0);
      for (int bytes : {8 << 10, 32 << 10, 128 << 10}) grid("counter exchange", blocks, bytes);
    }
    library(all);
    if (machine_.major >= 9) {
      for (int size : {2, 4, 8, 16}) {
        cluster("cluster barrier", size, 0);
        for (int bytes : {8 << 10, 32 << 10}) cluster("cluster exchange", size, bytes);
      }
    }
    launches();
  }

  void print(bool json) const {
    if (!json) {
      std::printf("%s, %d multiprocessors\n%-18s %7s %9s %10s\n", machine_.name, machine_.multiProcessorCount, "",
                  "blocks", "bytes", "us");
      for (const Figure& f : figures_) {
        std::printf("%-18s %7d %9d %10.3f\n", f.name.c_str(), f.blocks, f.bytes, f.microseconds);
      }
      return;
    }
    std::printf("{\"gpu\": \"%s\", \"multiprocessors\": %d, \"steps\": %d, \"figures\": [", machine_.name,
                machine_.multiProcessorCount, kSteps);
    const char* between = "\n";
    for (const Figure& f : figures_) {
      std::printf("%s {\"name\": \"%s\", \"blocks\": %d, \"bytes\": %d, \"microseconds\": %.4f}", between,
                  f.name.c_str(), f.blocks, f.bytes, f.microseconds);
      between = ",\n";
    }
    std::printf("\n]}\n");
  }

 private:
  // Median over the runs, the first of which warms up; microseconds of one of `steps` parts of what `launch` starts.
  template <class Launch>
  double time(int steps, const Launch& launch) {
    std::vector<float> times;
    for (int run = 0; run <= kRuns; ++run) {
      check(cudaMemsetAsync(counter_, 0, sizeof(uint32_t), stream_), "cudaMemsetAsync");
      check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
      launch();
      check(cudaEventRecord(end_, stream_), "cudaEventRecord");
      check(cudaEventSynchronize(end_), "running");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
      if (run > 0) times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e3 / steps;
  }

  template <class... Parameters, class... Arguments>
  cudaError_t launch(void (*kernel)(Parameters...), int blocks, int cluster, int shared, Arguments... arguments) {
    cudaLaunchConfig_t config{};
    cudaLaunchAttribute attribute{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cluster > 0) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    } else {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, arguments...);
  }

  void grid(const char* name, int blocks, int bytes) {
    const int count = bytes / 16 / blocks * blocks;
    const double us = time(kSteps, [&] {
      check(count == 0 ? launch(counter_barrier, blocks, 0, 0, counter_, kSteps)
                       : launch(counter_exchange, blocks, 0, 0, counter_, operand_, count, kSteps, sink_),
            name);
    });
    figures_.push_back({name, blocks, bytes, us});
  }

  void library(int blocks) {
    const double us = time(kSteps, [&] { check(launch(library_barrier, blocks, 0, 0, kSteps), "grid.sync"); });
    figures_.push_back({"grid.sync", blocks, 0, us});
  }

  // A single cluster: others would not slow it, since clusters share nothing.
  void cluster(const char* name, int size, int bytes) {
    const int count = bytes / 16, shared = 2 * bytes;
    if (shared > static_cast<int>(machine_.sharedMemPerBlockOptin)) return;
    const void* kernels[] = {reinterpret_cast<const void*>(&cluster_barrier),
                             reinterpret_cast<const void*>(&cluster_exchange)};
    for (const void* kernel : kernels) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), name);
    }
    const auto start = [&] {
      return count == 0 ? launch(cluster_barrier, size, size, 0, kSteps)
                        : launch(cluster_exchange, size, size, shared, count, size, kSteps, sink_);
    };
    if (start() != cudaSuccess) {  // such as 16 blocks on a slice of a GPU
      cudaGetLastError();
      return;
    }
    figures_.push_back({name, size, bytes, time(kSteps, [&] { check(start(), name); })});
  }

  // Cost of the step-wise driver: two kernel launches per step.
  void launches() {
    const int count = 1000;
    const double us = time(count, [&] {
      for (int k = 0; k < count; ++k) nothing<<<64, 128, 0, stream_>>>();
      check(cudaGetLastError(), "launch");
    });
    figures_.push_back({"launch", 64, 0, us});
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int k = 0; k < count; ++k) nothing<<<64, 128, 0, stream_>>>();
    check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate");
    figures_.push_back(
        {"launch in a graph", 64, 0, time(count, [&] { check(cudaGraphLaunch(ready, stream_), "graph"); })});
  }

  cudaDeviceProp machine_{};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  uint32_t* counter_ = nullptr;
  Bits128* operand_ = nullptr;
  uint32_t* sink_ = nullptr;
  std::vector<Figure> figures_;
};

}  // namespace

int main(int argc, char** argv) {
  Benchmark benchmark;
  benchmark.run();
  benchmark.print(argc > 1 && std::strcmp(argv[1], "--json") == 0);
  return 0;
}
