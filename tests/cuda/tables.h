// The tables of all cells' kernels, from the units that tests/harness/emulated.py generates.
#pragma once

#include <vector>

#include "cuda/kernels.h"

namespace fastrnn::cuda {

const std::vector<CellKernels>& all_tables();

}  // namespace fastrnn::cuda
