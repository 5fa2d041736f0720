#include "binding/products.h"

namespace fastrnn::products {

Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  return at::linear(x, w, bias).contiguous();
}

void forward_into(Tensor& out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  if (bias) {
    at::addmm_out(out, *bias, x, w.t());
  } else {
    at::mm_out(out, x, w.t());
  }
}

Tensor of_input(const Tensor& g, const Tensor& w) { return at::mm(g, w); }

Tensor of_weight(const Tensor& g, const Tensor& x) { return at::mm(g.t(), x); }

void add_of_weight(Tensor& sum, const Tensor& g, const Tensor& x) { sum.addmm_(g.t(), x); }

}  // namespace fastrnn::products
