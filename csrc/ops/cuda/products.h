// cuBLAS products through torch, before and after the recurrence and within the steps of the step-wise driver. torch's
// settings (TF32, reduced precision) apply as to its own products.
#pragma once

#include "cuda/drivers.h"
#include "ops/cuda/memory.h"

namespace fastrnn::cuda {

struct products {
  // Uninitialised memory for a result, with the dtype of `like`
  static Tensor empty(at::IntArrayRef sizes, const Tensor& like);
  // x·wᵀ (+ bias): x (N, K), w (M, K), bias (M)
  static Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias);
  static void forward_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& bias);
  // g·w, the gradient of x: g (N, M), w (M, K)
  static Tensor of_input(const Tensor& g, const Tensor& w);
  // gᵀ·x, the gradient of w: g (N, M), x (N, K)
  static Tensor of_weight(const Tensor& g, const Tensor& x);
  static void of_weight_into(Tensor out, const Tensor& g, const Tensor& x);
  // Adds gᵀ·x to `sum` (M, K).
  static void add_of_weight(Tensor sum, const Tensor& g, const Tensor& x);
};

// A product of the step-wise driver: the first rows of `out` = those of `operand` · `matrix`. Sums of 16-bit values are
// float32.
class StepProduct {
 public:
  StepProduct() = default;
  StepProduct(Tensor out, Tensor operand, Tensor matrix)
      : out_(std::move(out)), operand_(std::move(operand)), matrix_(std::move(matrix)) {}
  void run(int64_t rows);

 private:
  Tensor out_, operand_, matrix_;
  Tensor some_out_, some_operand_;  // views of the last call's number of rows
};

struct StepLibrary final : Library {
  StepProduct recurrent_product, projection_product;

  void recurrent(int64_t rows) override { recurrent_product.run(rows); }
  void projection(int64_t rows) override { projection_product.run(rows); }
};

}  // namespace fastrnn::cuda
