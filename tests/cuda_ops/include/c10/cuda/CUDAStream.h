// Stands in for torch's: the emulator has one stream, which runs a kernel before it returns.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAStream {
  void* stream() const { return nullptr; }
};
inline CUDAStream getCurrentCUDAStream(DeviceIndex) { return {}; }

}  // namespace c10::cuda
