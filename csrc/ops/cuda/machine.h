// What the GPUs are.
#pragma once

#include <c10/core/Device.h>

#include <string>

#include "cuda/plan.h"

namespace fastrnn::cuda {

// Read once for each device. Of a slice of a GPU (MIG), the slice's numbers.
Machine machine(c10::DeviceIndex device);
// Why no kernel of this build can run there; empty if they can.
std::string device_problem(c10::DeviceIndex device);

// Lets every GPU seem this small, each limit 0 for what it is (tests).
void limit_machine(int processors, int64_t shared_bytes, int largest_cluster);

}  // namespace fastrnn::cuda
