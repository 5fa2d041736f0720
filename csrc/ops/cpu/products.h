// Linear products before and after the recurrence: of the input, and of the gradients. Only here is the method chosen,
// by size and dtype.
#pragma once

#include "ops/call.h"

namespace fastrnn {

// A struct, so that it can be a member of a Device
struct products {
  // While set, an element of a float32 or float64 product depends bitwise on its row and column only: no kernel is
  // chosen by the size of the matrices. For all threads, because backward passes run in other threads.
  static void set_batch_invariant(bool on);
  static bool batch_invariant();

  // Uninitialised memory for a result, with the dtype of `like`
  static Tensor empty(at::IntArrayRef sizes, const Tensor& like);

  // x·wᵀ (+ bias): x (N, K), w (M, K), bias (M); contiguous
  static Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias = {});
  // The same into `out` (N, M), which may be part of a larger tensor
  static void forward_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& bias = {});
  // The same also for float32 x with w in bfloat16, or in int8 with a scale per row (M)
  struct Forward {
    Tensor& out;
    const Tensor &x, &w;
    OptionalTensor bias, scales;
  };
  static void forward_one(const Forward& product);
  // Two independent products, in one parallel region
  static void forward_both(const Forward& first, const Forward& second);
  // g·w, the gradient of x: g (N, M), w (M, K)
  static Tensor of_input(const Tensor& g, const Tensor& w);
  // Adds g·w to `sum` (N, K).
  static void add_of_input(Tensor sum, const Tensor& g, const Tensor& w);
  // gᵀ·x, the gradient of w: g (N, M), x (N, K)
  static Tensor of_weight(const Tensor& g, const Tensor& x);
  static void of_weight_into(Tensor out, const Tensor& g, const Tensor& x);
  // Adds gᵀ·x to `sum` (M, K).
  static void add_of_weight(Tensor sum, const Tensor& g, const Tensor& x);
};

}  // namespace fastrnn
