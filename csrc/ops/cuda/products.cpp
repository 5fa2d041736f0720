#include "ops/cuda/products.h"

namespace fastrnn::cuda {

Tensor products::empty(at::IntArrayRef sizes, const Tensor& like) {
  return fresh(sizes, like.options().requires_grad(false));
}

Tensor products::forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  Tensor out = empty({x.size(0), w.size(0)}, w);
  forward_into(out, x, w, bias);
  return out;
}

void products::forward_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  if (bias) {
    at::addmm_out(out, *bias, x, w.t());
  } else {
    at::mm_out(out, x, w.t());
  }
}

Tensor products::of_input(const Tensor& g, const Tensor& w) { return at::mm(g, w); }
Tensor products::of_weight(const Tensor& g, const Tensor& x) { return at::mm(g.t(), x); }
void products::of_weight_into(Tensor out, const Tensor& g, const Tensor& x) { at::mm_out(out, g.t(), x); }
void products::add_of_weight(Tensor sum, const Tensor& g, const Tensor& x) { sum.addmm_(g.t(), x); }

void StepProduct::run(int64_t rows) {
  if (!some_out_.defined() || some_out_.size(0) != rows) {
    some_out_ = out_.narrow(0, 0, rows);
    some_operand_ = operand_.narrow(0, 0, rows);
  }
  if (some_out_.scalar_type() == some_operand_.scalar_type()) {
    at::mm_out(some_out_, some_operand_, matrix_);
  } else {
    at::mm_out(some_out_, some_operand_, matrix_, some_out_.scalar_type());
  }
}

}  // namespace fastrnn::cuda
