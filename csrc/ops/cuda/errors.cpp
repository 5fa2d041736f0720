#include "ops/cuda/errors.h"

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

namespace fastrnn::cuda {

void check(Error error, const char* doing) {
  if (error == cudaSuccess) return;
  forget_error();
  TORCH_CHECK(false, "fastrnn: CUDA error in ", doing, ": ", error_text(error), " (",
              cudaGetErrorName(static_cast<cudaError_t>(error)), ")");
}

bool is_refusal(Error error) {
  switch (error) {
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidValue:  // from setting an attribute: more shared memory than a block may have
    case cudaErrorLaunchOutOfResources:
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorInvalidClusterSize:
    case cudaErrorNotSupported:
      return true;
    default:
      return false;
  }
}

Error a_refusal() { return cudaErrorCooperativeLaunchTooLarge; }

void forget_error() { static_cast<void>(cudaGetLastError()); }

const char* error_text(Error error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace fastrnn::cuda
