// Properties of the GPUs.
#pragma once

#include <c10/core/Device.h>

#include <string>

#include "cuda/plan.h"

namespace fastrnn::cuda {

// Read once for each device. For a slice of a GPU (MIG), the numbers of the slice.
Machine machine(c10::DeviceIndex device);
// Return why no kernel of this build can run on the device; empty if they can.
std::string device_problem(c10::DeviceIndex device);

// Limits the reported size of every GPU; 0: the actual one (tests).
void limit_machine(int processors, int64_t shared_bytes, int largest_cluster);

}  // namespace fastrnn::cuda
