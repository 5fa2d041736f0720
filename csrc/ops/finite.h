// Check of many values for infinity and NaN.
#pragma once

#include "ops/aten.h"

namespace fastrnn {

// Return true if no element of `t` is infinite or NaN. t: (N, M) of one of the kernels' dtypes, its rows contiguous.
bool all_finite(const at::Tensor& t);

}  // namespace fastrnn
