// The state of torch's dispatcher and of CUDA in which an operator works.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda_binding/memory.h"

namespace fastrnn::cuda {

// Autocast has done its work before an operator is called (inside, it would change the dtype of single products), and
// the outputs must not be known as views of the memory they were made in.
struct Inside {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  at::AutoDispatchBelowADInplaceOrView no_views;
  c10::cuda::OptionalCUDAGuard device;

  explicit Inside(const Tensor& w_hh) {
    if (on_gpu(w_hh)) device.set_device(w_hh.device());
  }
};

}  // namespace fastrnn::cuda
