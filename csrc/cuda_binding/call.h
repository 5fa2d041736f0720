// A checked call of an operator on a GPU: its kernels, its sizes, and how its rows lie.
#pragma once

#include <c10/util/string_view.h>

#include "binding/cell_lookup.h"
#include "cuda/registry.h"
#include "cuda_binding/rows.h"

namespace fastrnn::cuda {

struct Call {
  at::Device device;
  const CellKernels* cell;
  double clip;  // BackwardArgs::clip
  Layout layout;
  int64_t hidden, projected;  // H, P
  bool projection;            // of h; P may be H then too
  const FormatKernels* kernels;
  at::TensorOptions options;

  // `rows_like`: the tensor whose leading dimensions say how rows lie (x, or y in backward).
  Call(c10::string_view name, const Tensor& rows_like, const Tensor& w_hh, const OptionalTensor& w_hr,
       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset);

  int64_t gate_width() const { return cell->gates * hidden; }
  int64_t recurrent_width() const { return cell->recurrent * hidden; }
  int64_t first_width() const { return (cell->recurrent - cell->second) * hidden; }      // of the products of h
  int64_t split_width() const { return (cell->recurrent - cell->split_from) * hidden; }  // of drh that is not da
  // Rows of w_hh: those that multiply h, those that multiply another vector, and behind them the cell's parameters.
  Tensor first_product(const Tensor& w_hh) const { return w_hh.narrow(0, 0, first_width()); }
  Tensor second_product(const Tensor& w_hh) const {
    return w_hh.narrow(0, first_width(), recurrent_width() - first_width());
  }
  const void* parameters_of(const Tensor& w_hh) const;
  // The matrix of a step's second product, if it has one: that of a projection, or the cell's own.
  OptionalTensor second_matrix(const Tensor& w_hh, const OptionalTensor& w_hr) const;
  bool two_products() const { return projection || cell->second > 0; }
  int64_t width(int s) const { return s == 0 ? projected : hidden; }
  at::ScalarType compute_type() const;
  // Raises unless `t` has these sizes, this call's dtype, and lies on its device.
  void check(const Tensor& t, at::IntArrayRef sizes, const char* name) const;
  void check_states(at::TensorList states, const char* name) const;
};

// Of the numbers of that type; of float32, where torch allows its own products TF32 and the GPU has it, kTf32. Raises
// TypeError for types that have no kernels.
Format format_of(at::ScalarType type, const at::Device& device);
// Null where there is no such cell, or no such format.
const FormatKernels* kernels_of(const CellKernels* cell, Format format);
// A cell with kernels for a dtype on a GPU; those of a custom cell are made if need be. Raises ValueError for an
// unknown cell, RuntimeError where its kernels cannot be made, TypeError for other dtypes.
const CellKernels* cell_named(const std::string& name, at::ScalarType type, const at::Device& device);
void set_preparation(Preparation function);

}  // namespace fastrnn::cuda
