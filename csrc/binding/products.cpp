#include "binding/products.h"

#include "binding/library.h"

namespace fastrnn::products {

Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  std::vector<int64_t> sizes = x.sizes().vec();
  const Tensor rows = x.reshape({-1, sizes.back()});
  Tensor out = at::empty({rows.size(0), w.size(0)}, w.options().requires_grad(false));
  library::product(out, rows, w.t(), bias);
  sizes.back() = w.size(0);
  return out.view(sizes);
}

void forward_into(Tensor& out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  library::product(out, x, w.t(), bias);
}

Tensor of_input(const Tensor& g, const Tensor& w) {
  Tensor out = at::empty({g.size(0), w.size(1)}, g.options());
  library::product(out, g, w, {});
  return out;
}

Tensor of_weight(const Tensor& g, const Tensor& x) {
  Tensor out = at::empty({g.size(1), x.size(1)}, g.options());
  library::product(out, g.t(), x, {});
  return out;
}

void add_of_weight(Tensor& sum, const Tensor& g, const Tensor& x) { library::product(sum, g.t(), x, {}, true); }

}  // namespace fastrnn::products
