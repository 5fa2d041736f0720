// The linear products around a recurrence: of the input, and of the gradients. One place, so that each may be computed
// by whatever is best for its size and dtype.
#pragma once

#include "ops/call.h"

namespace fastrnn {

// A struct, so that it can be a member of a Device.
struct products {
  // While set, the bits of an element of a float32 or float64 product depend on its row and column alone: no kernel is
  // chosen by the size of the matrices. For all threads, as backward passes run on threads of their own.
  static void set_batch_invariant(bool on);
  static bool batch_invariant();

  // Memory for a result, of the type of `like`.
  static Tensor empty(at::IntArrayRef sizes, const Tensor& like);

  // x·wᵀ (+ bias): x (N, K), w (M, K), bias (M). Contiguous.
  static Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias = {});
  // The same into `out` (N, M), which may be part of a larger tensor.
  static void forward_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& bias = {});
  // The same of float32 with w in bfloat16, or in int8, a row of which is multiplied with its scale (M).
  static void forward_narrow_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& scales,
                                  const OptionalTensor& bias);
  // g·w, the gradient of x: g (N, M), w (M, K).
  static Tensor of_input(const Tensor& g, const Tensor& w);
  // Adds g·w to `sum` (N, K).
  static void add_of_input(Tensor sum, const Tensor& g, const Tensor& w);
  // gᵀ·x, the gradient of w: g (N, M), x (N, K).
  static Tensor of_weight(const Tensor& g, const Tensor& x);
  static void of_weight_into(Tensor out, const Tensor& g, const Tensor& x);
  // Adds gᵀ·x to `sum` (M, K).
  static void add_of_weight(Tensor sum, const Tensor& g, const Tensor& x);
};

}  // namespace fastrnn
