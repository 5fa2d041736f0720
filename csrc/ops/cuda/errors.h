// Errors of the CUDA runtime.
#pragma once

#include "cuda/kernels.h"

namespace fastrnn::cuda {

// Raises RuntimeError if `error` is an error; `doing` names the operation that failed.
void check(Error error, const char* doing);
// Return true if a launch was refused because its blocks do not fit on the GPU at once: nothing has run, and another
// driver may.
bool is_refusal(Error error);
Error a_refusal();
// Clears the error of a refused launch, which the next check would otherwise report.
void forget_error();
const char* error_text(Error error);

}  // namespace fastrnn::cuda
