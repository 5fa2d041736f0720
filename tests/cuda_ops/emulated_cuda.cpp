// CPU replacements for what the binding of csrc/ops/cuda uses on a GPU: the runtime's errors, a machine, the small
// kernels of cuda/layout.h.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda/layout.h"
#include "launcher.h"
#include "ops/cuda/machine.h"

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "emulated"; }
const char* cudaGetErrorString(cudaError_t error) {
  if (static_cast<int>(error) == fastrnn::emulator::kFailed) return fastrnn::emulator::failure().c_str();
  return error == cudaErrorCooperativeLaunchTooLarge ? "too many blocks in cooperative launch" : "an emulated error";
}

namespace fastrnn::cuda {

Error write_offsets(const int64_t* counts, int64_t steps, int64_t* offsets, Stream) {
  offsets[0] = 0;
  for (int64_t t = 0; t < steps; ++t) offsets[t + 1] = offsets[t] + counts[t];
  return cudaSuccess;
}

namespace {

template <class Word>
void before(const Rows& rows, const void* y, const void* initial, const void* restart, void* out, int64_t width) {
  // More threads than elements, as of a launch in whole blocks.
  for (int64_t n = 0; n < rows.steps * rows.batch * width + 100; ++n) {
    copy_before(rows, static_cast<const Word*>(y), static_cast<const Word*>(initial), static_cast<const Word*>(restart),
                static_cast<Word*>(out), width, n);
  }
}

Machine limits{};

}  // namespace

Error hidden_before(const Rows& rows, const void* y, const void* initial, const void* restart, void* out, int64_t width,
                    int bytes, Stream) {
  if (bytes == 2) before<uint16_t>(rows, y, initial, restart, out, width);
  if (bytes == 4) before<uint32_t>(rows, y, initial, restart, out, width);
  if (bytes == 8) before<uint64_t>(rows, y, initial, restart, out, width);
  return cudaSuccess;
}

Machine machine(c10::DeviceIndex) {
  const emulator::Settings& s = emulator::settings();
  const auto limited = [](auto is, auto limit) { return limit > 0 ? std::min(is, limit) : is; };
  return {limited(s.processors, limits.processors), limited(s.shared_bytes, limits.shared_bytes), 9,
          limited(s.largest_cluster, limits.largest_cluster)};
}

std::string device_problem(c10::DeviceIndex) { return {}; }

void limit_machine(int processors, int64_t shared_bytes, int largest_cluster) {
  limits.processors = processors, limits.shared_bytes = shared_bytes, limits.largest_cluster = largest_cluster;
}

}  // namespace fastrnn::cuda
