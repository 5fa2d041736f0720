// GPUs as a Device of csrc/ops: see ops/checked.h.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/registry.h"
#include "ops/backward.h"
#include "ops/cuda/layout.h"
#include "ops/cuda/memory.h"
#include "ops/cuda/products.h"

namespace fastrnn::cuda {

// The kernel format of a dtype; for float32 kTf32 if torch allows its own products TF32 and the GPU supports it. Raises
// TypeError for dtypes without kernels.
Format format_of(at::ScalarType type, const at::Device& device);
// Null if there is no such cell or no such format
const FormatKernels* kernels_of(const CellKernels* cell, Format format);
// A cell with kernels for a dtype on a GPU; a custom cell's are compiled on demand. Raises ValueError for an unknown
// cell, RuntimeError if the kernels cannot be compiled, TypeError for other dtypes.
const CellKernels* cell_named(const std::string& name, at::ScalarType type, const at::Device& device);
void set_preparation(Preparation function);

struct Cuda {
  using Cell = CellKernels;
  using Layout = CudaLayout;
  using Kernels = const FormatKernels*;
  using products = cuda::products;

  // Dispatcher state inside an operator: autocast off, outputs not tracked as views, the call's GPU current
  struct Inside {
    explicit Inside(const LayerCall& call) {
      if (on_gpu(call.w_hh())) device.set_device(call.w_hh().device());
    }
    c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
    at::AutoDispatchBelowADInplaceOrView no_views;
    c10::cuda::OptionalCUDAGuard device;
  };
  struct ThreadLimit {
    ThreadLimit(const Checked<Cuda>&, const LayerCall&, int) {}
  };
  struct Memory {
    Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) { return fresh(sizes, options); }
    // Memory for tensors saved for backward, deterministic: zero in padding, which kernels do not write.
    Tensor saved(const CudaLayout& layout, int64_t width, const at::TensorOptions& options);
  };

  static at::Device of(const LayerCall& call, const Tensor& rows_like);
  static const CellKernels* cell(const std::string& name, at::ScalarType type, const at::Device& device) {
    return cell_named(name, type, device);
  }
  static const FormatKernels* kernels(const CellKernels& cell, at::ScalarType type, const at::Device& device) {
    return kernels_of(&cell, format_of(type, device));
  }

  static bool adds_bias(const Checked<Cuda>&, const LayerCall&) { return true; }
  static void run(const Checked<Cuda>& c, const ForwardPass& pass, Memory& memory);
  static void run(const Checked<Cuda>& c, BackwardPass& pass, Memory& memory);

  // (N, Q·H), one row of gradients for each row
  static Tensor parameter_gradients(const Checked<Cuda>& c, Memory& memory);
  // h before each row's time step, (N, P): the operand of R
  static Tensor hidden_before(const Checked<Cuda>& c, const BackwardPass& pass);
  static Tensor unprojected(const Checked<Cuda>& c, const BackwardPass& pass);
  // The first `count` columns of `left` and all of `right`, side by side.
  static Tensor columns(const Tensor& left, int64_t count, const Tensor& right) {
    return at::cat({left.narrow(1, 0, count), right}, 1);
  }
  static Tensor sum_rows(const Tensor& t) { return t.sum(0); }
  static Tensor copy(const Tensor& t) { return t.clone(); }
  static void clear(Tensor& t) { t.zero_(); }
  // On the CPU, NaN where drh is not finite; here that would need a synchronisation.
  static void add_of_zeros(const Tensor&, const Tensor&) {}
};

// A checked call, as drivers take it
using Call = Checked<Cuda>;

}  // namespace fastrnn::cuda
