#include "ops/cuda/machine.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "cuda/layout.h"
#include "ops/cuda/errors.h"

namespace fastrnn::cuda {

namespace {

constexpr int kLargestCluster = 16;  // above 8 only if the GPU allows it, as reported by the occupancy calculator

struct Known {
  Machine machine{};
  std::string problem;
};

std::mutex mutex;
std::map<c10::DeviceIndex, Known> known;
Machine limits{};  // 0: none

Known ask(c10::DeviceIndex device) {
  const c10::cuda::CUDAGuard guard(device);
  const cudaDeviceProp& found = *at::cuda::getDeviceProperties(device);
  Known out;
  int architecture = 0;
  const Error error = compiled_for(&architecture);
  if (error != 0) {
    forget_error();
    out.problem = std::string("the kernels are built for ") + architectures() + ", cuda:" + std::to_string(device) +
                  " is a " + found.name + " of compute capability " + std::to_string(found.major) + "." +
                  std::to_string(found.minor) + " (" + error_text(error) + ")";
  }
  out.machine.processors = found.multiProcessorCount;
  out.machine.shared_bytes = static_cast<int64_t>(found.sharedMemPerBlockOptin);
  out.machine.major = found.major;
  out.machine.minor = found.minor;
  // Kernels compiled for an older architecture run here too, but without clusters.
  out.machine.largest_cluster = found.major >= 9 && architecture >= 90 ? kLargestCluster : 0;
  return out;
}

const Known& of(c10::DeviceIndex device) {
  const auto at = known.find(device);
  return at != known.end() ? at->second : known.emplace(device, ask(device)).first->second;
}

template <class Number>
Number limited(Number is, Number limit) {
  return limit > 0 ? std::min(is, limit) : is;
}

}  // namespace

Machine machine(c10::DeviceIndex device) {
  const std::lock_guard lock(mutex);
  Machine m = of(device).machine;
  m.processors = limited(m.processors, limits.processors);
  m.shared_bytes = limited(m.shared_bytes, limits.shared_bytes);
  m.largest_cluster = limited(m.largest_cluster, limits.largest_cluster);
  return m;
}

std::string device_problem(c10::DeviceIndex device) {
  const std::lock_guard lock(mutex);
  return of(device).problem;
}

void limit_machine(int processors, int64_t shared_bytes, int largest_cluster) {
  const std::lock_guard lock(mutex);
  limits.processors = processors;
  limits.shared_bytes = shared_bytes;
  limits.largest_cluster = largest_cluster;
}

}  // namespace fastrnn::cuda
