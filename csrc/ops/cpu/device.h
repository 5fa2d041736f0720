// The CPU as a Device of csrc/ops: see ops/checked.h.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>

#include "ops/backward.h"
#include "ops/cpu/buffers.h"
#include "ops/cpu/layout.h"
#include "ops/cpu/products.h"
#include "ops/cpu/thread_limit.h"

namespace fastrnn {

// A cell with kernels for a dtype and the current instruction set; a custom cell's are compiled on demand. Raises
// ValueError for an unknown cell, RuntimeError if the kernels cannot be compiled, TypeError for other dtypes.
const CellKernels& kernels_of(const std::string& name, at::ScalarType type);
void set_preparation(Preparation function);

// Return true if the caller computes R·h of a sequence's only time step: the driver would first pack R.
bool multiplies_ahead(const CellKernels& cell, int64_t steps);

// The kernel format for tensors of a dtype: float32 by bfloat16 parts if the cell has such kernels and torch allows it.
Format format_for(const CellKernels& cell, at::ScalarType type);

struct Cpu {
  using Cell = CellKernels;
  using Layout = CpuLayout;
  using Kernels = Format;
  using products = fastrnn::products;

  // Dispatcher state inside an operator. Autocast off: it was applied before the call, and would change the dtype of
  // single products. Outputs must not be tracked as views of the memory they were allocated in.
  struct Inside {
    explicit Inside(const LayerCall&) {}
    c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
    at::AutoDispatchBelowADInplaceOrView no_views;
  };
  struct ThreadLimit : fastrnn::ThreadLimit {
    ThreadLimit(const Checked<Cpu>& c, const LayerCall& call, int times)
        : fastrnn::ThreadLimit({c.layout.rows, c.gate_width(),
                                (call.w_ih().defined() ? call.w_ih().size(-1) : 0) + c.projected, times}) {}
  };
  struct Memory : Buffers {
    // Memory for tensors saved for backward, deterministic: zero beyond the existing rows.
    Tensor saved(const CpuLayout& layout, int64_t width, const at::TensorOptions& options);
  };

  static at::Device of(const LayerCall&, const Tensor&) { return at::kCPU; }
  static const CellKernels* cell(const std::string& name, at::ScalarType type, const at::Device&) {
    return &kernels_of(name, type);
  }
  static Format kernels(const CellKernels& cell, at::ScalarType type, const at::Device&) {
    return format_for(cell, type);
  }

  // Return true if b_ih is to be added to W·x before the recurrence: a 16-bit W·x must not be rounded before adding the
  // bias, which may cancel it. Otherwise the kernel adds it, which saves a pass over W·x.
  static bool adds_bias(const Checked<Cpu>& c, const LayerCall& call);
  static void run(const Checked<Cpu>& c, const ForwardPass& pass, Memory& memory);
  static void run(const Checked<Cpu>& c, BackwardPass& pass, Memory& memory);

  // (B, Q·H) zeros in the compute dtype; the kernel sums over each row's time steps.
  static Tensor parameter_gradients(const Checked<Cpu>& c, Memory& memory);
  // h before each row's time step, (N, P): the operand of R.
  static Tensor hidden_before(const Checked<Cpu>& c, const BackwardPass& pass);
  // h before its projection, (N, H). Zeros at a last step whose h has no gradient, where it may be NaN.
  static Tensor unprojected(const Checked<Cpu>& c, const BackwardPass& pass);
  // The first `count` columns of `left` and all of `right`, side by side.
  static Tensor columns(const Tensor& left, int64_t count, const Tensor& right);
  // Σ over rows; for a single row a view
  static Tensor sum_rows(const Tensor& t);
  static Tensor copy(const Tensor& t);
  static void clear(Tensor& t);
  // Adds drhᵀ·0, the contribution of steps without an initial state: NaN if drh is not finite, because zero times
  // infinity is.
  static void add_of_zeros(Tensor& out, const Tensor& drh);
};

}  // namespace fastrnn
