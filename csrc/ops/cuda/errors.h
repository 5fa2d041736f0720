// What CUDA answers, in words.
#pragma once

#include "cuda/kernels.h"

namespace fastrnn::cuda {

// Raises RuntimeError unless `error` is none; `doing` names what failed.
void check(Error error, const char* doing);
// Whether a launch was refused because its blocks cannot be on the machine at once: nothing has run, and another driver
// may.
bool is_refusal(Error error);
Error a_refusal();
// Forgets the error of a refused launch, which the next check would find otherwise.
void forget_error();
const char* error_text(Error error);

}  // namespace fastrnn::cuda
