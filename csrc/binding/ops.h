// The operators behind torch.ops.fastrnn: one layer, one direction, a whole sequence.
#pragma once

#include <tuple>

#include "binding/layout.h"

namespace fastrnn {

// The weights of a layer, as in fastrnn/functional.py.
struct Weights {
  OptionalTensor w_ih;  // (G·H, I); none: x is the input product already
  Tensor w_hh;          // (G·H, P)
  OptionalTensor b_ih;  // (G·H)
  OptionalTensor b_hh;  // (G·H)
  OptionalTensor w_hr;  // (P, H)
};

// A checked call: the cell's kernels, its sizes and how its rows lie.
struct Call {
  const CellKernels* cell;
  Layout layout;
  int64_t hidden, projected;
  Format format;
  at::TensorOptions options;

  // `rows_like`: the tensor whose leading dimensions say how rows lie (x, or y in backward).
  Call(c10::string_view name, const Tensor& rows_like, const Tensor& w_hh, const OptionalTensor& w_hr,
       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset);

  int64_t gate_width() const { return cell->gates * hidden; }
  int64_t width(int s) const { return s == 0 ? projected : hidden; }
  // Raises unless `t` has these sizes and this call's dtype, and lies on the CPU.
  void check(const Tensor& t, at::IntArrayRef sizes, const char* name) const;
  void check_states(at::TensorList states, const char* name) const;
};

}  // namespace fastrnn
