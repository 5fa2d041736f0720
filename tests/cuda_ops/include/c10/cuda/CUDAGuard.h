// Stands in for torch's: the emulator is one device.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

struct OptionalCUDAGuard {
  void set_device(Device) {}
};

}  // namespace c10::cuda
