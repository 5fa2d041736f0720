// The CPU for the operators of csrc/ops: see ops/checked.h.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>

#include "ops/backward.h"
#include "ops/cpu/buffers.h"
#include "ops/cpu/layout.h"
#include "ops/cpu/modest.h"
#include "ops/cpu/products.h"

namespace fastrnn {

// A cell with kernels for a dtype and the instruction set in use; those of a custom cell are made if need be. Raises
// ValueError for an unknown cell, RuntimeError where its kernels cannot be made, TypeError for other dtypes.
const CellKernels& kernels_of(const std::string& name, at::ScalarType type);
void set_preparation(Preparation function);

// Return true if the caller computes R·h of a sequence's only step: the driver would pack R first.
bool multiplies_ahead(const CellKernels& cell, int64_t steps);

// The kernel format for tensors of a dtype: float32 by parts where the cell has that and
// torch allows it.
Format format_for(const CellKernels& cell, at::ScalarType type);

struct Cpu {
  using Cell = CellKernels;
  using Layout = CpuLayout;
  using Kernels = Format;
  using products = fastrnn::products;

  // Autocast has done its work before an operator is called (inside, it would change the dtype of single products), and
  // outputs must not be tracked as views of the memory they were made in.
  struct Inside {
    explicit Inside(const LayerCall&) {}
    c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
    at::AutoDispatchBelowADInplaceOrView no_views;
  };
  struct ThreadLimit : Modest {
    ThreadLimit(const Checked<Cpu>& c, const LayerCall& call, int times)
        : Modest({c.layout.rows, c.gate_width(), (call.w_ih().defined() ? call.w_ih().size(-1) : 0) + c.projected,
                  times}) {}
  };
  struct Memory : Buffers {
    // For what is saved for backward, a function of the inputs alone: zeros beyond the rows that there are.
    Tensor saved(const CpuLayout& layout, int64_t width, const at::TensorOptions& options);
  };

  static at::Device of(const LayerCall&, const Tensor&) { return at::kCPU; }
  static const CellKernels* cell(const std::string& name, at::ScalarType type, const at::Device&) {
    return &kernels_of(name, type);
  }
  static Format kernels(const CellKernels& cell, at::ScalarType type, const at::Device&) {
    return format_for(cell, type);
  }

  // Return true if b_ih is to be added to W·x before the recurrence. A 16-bit W·x must not be rounded before the bias,
  // with which it may cancel. Otherwise the kernel does it, which saves a pass over W·x.
  static bool adds_bias(const Checked<Cpu>& c, const LayerCall& call);
  static void run(const Checked<Cpu>& c, const ForwardPass& pass, Memory& memory);
  static void run(const Checked<Cpu>& c, BackwardPass& pass, Memory& memory);

  // (B, Q·H) zeros in the dtype that is computed in: each row's steps are summed by the kernel.
  static Tensor parameter_gradients(const Checked<Cpu>& c, Memory& memory);
  // h before each row's step, (N, P): what R was multiplied with.
  static Tensor hidden_before(const Checked<Cpu>& c, const BackwardPass& pass);
  // h before its projection, (N, H). Zeros at a last step whose h no gradient reaches: it may be NaN there.
  static Tensor unprojected(const Checked<Cpu>& c, const BackwardPass& pass);
  // The first `count` columns of `left` and all of `right`, side by side.
  static Tensor columns(const Tensor& left, int64_t count, const Tensor& right);
  // Σ over rows; a single row needs no reduction.
  static Tensor sum_rows(const Tensor& t);
  static Tensor copy(const Tensor& t);
  static void clear(Tensor& t);
  // Adds drhᵀ·0, the share of the steps that start from no initial state: NaN where drh is not finite, as zero times
  // infinity is.
  static void add_of_zeros(Tensor& out, const Tensor& drh);
};

}  // namespace fastrnn
