// The operators behind torch.ops.fastrnn: one layer, one direction, a whole sequence.
#pragma once

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "binding/cell_lookup.h"
#include "binding/layout.h"
#include "binding/states.h"

namespace fastrnn {

// The weights of a layer, as in fastrnn/functional.py.
struct Weights {
  OptionalTensor w_ih;  // (G·H, I); none: x is the input product already
  Tensor w_hh;          // (R·H + Q, P)
  OptionalTensor b_ih;  // (G·H)
  OptionalTensor b_hh;  // (R·H)
  OptionalTensor w_hr;  // (P, H)
};

// A cell with kernels for a dtype and the instruction set in use; those of a custom cell are made if need be. Raises
// ValueError for an unknown cell, RuntimeError where its kernels cannot be made, TypeError for other dtypes.
const CellKernels& kernels_of(const std::string& name, at::ScalarType type);
void set_preparation(Preparation function);

// The kernels' number format for tensors of a type: float32 by parts where the cell has that and torch allows it.
Format format_for(const CellKernels& cell, at::ScalarType type);

// A checked call: the cell's kernels, its sizes and how its rows lie. Behind the name of a cell there may be a bound
// for the gradient of its h: "lstm@0.5" (BackwardArgs::clip).
struct Call {
  const CellKernels* cell;
  double clip;  // 0: none
  Layout layout;
  int64_t hidden, projected;
  Format format;
  at::TensorOptions options;

  // `rows_like`: the tensor whose leading dimensions say how rows lie (x, or y in backward).
  Call(c10::string_view name, const Tensor& rows_like, const Tensor& w_hh, const OptionalTensor& w_hr,
       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset);

  int64_t gate_width() const { return cell->gates * hidden; }
  // Of R·h, and of that part which is multiplied with h itself.
  int64_t recurrent_width() const { return cell->recurrent * hidden; }
  int64_t first_width() const { return (cell->recurrent - cell->second) * hidden; }
  // w_hh has the rows of the first product, of the second, and one for each of the cell's numbers per unit.
  Tensor first_product(const Tensor& w_hh) const {
    return first_width() == w_hh.size(0) ? w_hh : w_hh.narrow(0, 0, first_width());
  }
  const void* parameters_of(const Tensor& w_hh) const {  // w_hh: dense
    return static_cast<const char*>(w_hh.const_data_ptr()) + recurrent_width() * projected * w_hh.element_size();
  }
  int64_t width(int s) const { return s == 0 ? projected : hidden; }
  // Raises unless `t` has these sizes and this call's dtype, and lies on the CPU.
  void check(const Tensor& t, at::IntArrayRef sizes, const char* name) const;
  void check_states(at::TensorList states, const char* name) const;
};

using Tensors = std::vector<Tensor>;

// What an operator does is its own affair: autocast has done its work before it is called (inside, it would change the
// dtype of single products), and its outputs must not be known as views of the memory they were made in.
struct Inside {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  at::AutoDispatchBelowADInplaceOrView no_views;
};

// The layer without its operator: tensors may be undefined that the operator has to return as empty ones. Of `grads`,
// those of y and (or not at all) of the final states.
std::tuple<Tensor, Tensors, Tensors> forward_layer(c10::string_view cell, const Tensor& x, const OptionalTensor& w_ih,
                                                   const Tensor& w_hh, const OptionalTensor& b_ih,
                                                   const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                                                   at::TensorList initial, const OptionalTensor& batch_sizes,
                                                   const OptionalTensor& lengths, const OptionalTensor& reset,
                                                   bool reverse, bool training);
Tensors backward_layer(c10::string_view cell, at::TensorList grads, const Tensor& x, const OptionalTensor& w_ih,
                       const Tensor& w_hh, const OptionalTensor& w_hr, at::TensorList initial, const Tensor& y,
                       at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs, Tensors* flow = nullptr);
// Empty tensors where forward_layer left undefined ones.
void fill_reserve(Tensors& reserve, const Tensor& w_hh);

// The operators themselves; ops.cpp and backward.cpp say what they return.
std::tuple<Tensor, Tensors, Tensors> sequence_forward(c10::string_view cell, const Tensor& x,
                                                      const OptionalTensor& w_ih, const Tensor& w_hh,
                                                      const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                                      const OptionalTensor& w_hr, OptionalTensors initial,
                                                      const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                                      const OptionalTensor& reset, bool reverse, bool training);

std::tuple<Tensor, Tensor, Tensors, Tensor> sequence_backward(
    c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
    const Tensor& w_hh, const OptionalTensor& w_hr, OptionalTensors initial, const Tensor& y, at::TensorList reserve,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset, bool reverse,
    bool want_initial, bool want_dh);

Tensors layer_backward(c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
                       const Tensor& x, const OptionalTensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
                       OptionalTensors initial, const Tensor& y, at::TensorList reserve,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
                       bool reverse, std::array<bool, 7> needs);

Tensors layer_backward_flow(c10::string_view cell, const OptionalTensor& grad_y,
                            const c10::List<OptionalTensor>& grad_final, const Tensor& x, const OptionalTensor& w_ih,
                            const Tensor& w_hh, const OptionalTensor& w_hr, OptionalTensors initial, const Tensor& y,
                            at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                            const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs);

}  // namespace fastrnn
