#include "binding/products.h"

#include <ATen/Context.h>

#include "binding/buffers.h"
#include "binding/library.h"
#include "binding/modest.h"
#include "cpu/matmul.h"

namespace fastrnn::products {

namespace {

bool dense_matrix(const Tensor& t) {
  return t.scalar_type() == at::kFloat && (t.stride(0) == 1 || t.stride(1) == 1) && t.stride(0) > 0 && t.stride(1) > 0;
}

// out = a·b (+ bias), or with `add` out + a·b.
void multiply(Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& bias, bool add = false) {
  const int64_t rows = out.size(0), columns = out.size(1), depth = a.size(1);
  if (!matmul_in_parts_pays(rows, columns, depth) || !dense_matrix(a) || !dense_matrix(b) || !dense_matrix(out) ||
      out.stride(1) != 1 || !in_parts()) {
    return library::product(out, a, b, bias, add);
  }
  const OptionalTensor dense_bias = bias ? OptionalTensor(bias->contiguous()) : bias;
  MatmulArgs args{};
  args.rows = rows, args.columns = columns, args.depth = depth;
  args.a = a.const_data_ptr<float>(), args.a_row = a.stride(0), args.a_depth = a.stride(1);
  args.b = b.const_data_ptr<float>(), args.b_depth = b.stride(0), args.b_column = b.stride(1);
  args.bias = dense_bias ? dense_bias->const_data_ptr<float>() : nullptr;
  args.out = out.data_ptr<float>(), args.out_row = out.stride(0);
  args.add = add;
  args.threads = Modest::alone() ? 1 : static_cast<int>(Modest::threads());
  Buffers().verify(matmul_in_parts(args));
}

}  // namespace

bool in_parts() {
  const auto allowed = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL);
  return allowed == at::Float32Precision::TF32 || allowed == at::Float32Precision::BF16;
}

Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  std::vector<int64_t> sizes = x.sizes().vec();
  const int64_t leading = c10::multiply_integers(x.sizes().slice(0, sizes.size() - 1));
  const Tensor rows = x.reshape({leading, sizes.back()});
  Tensor out = at::empty({rows.size(0), w.size(0)}, w.options().requires_grad(false));
  multiply(out, rows, w.t(), bias);
  sizes.back() = w.size(0);
  return out.view(sizes);
}

void forward_into(Tensor& out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  multiply(out, x, w.t(), bias);
}

Tensor of_input(const Tensor& g, const Tensor& w) {
  Tensor out = at::empty({g.size(0), w.size(1)}, g.options());
  multiply(out, g, w, {});
  return out;
}

Tensor of_weight(const Tensor& g, const Tensor& x) {
  Tensor out = at::empty({g.size(1), x.size(1)}, g.options());
  of_weight_into(out, g, x);
  return out;
}

void of_weight_into(Tensor& out, const Tensor& g, const Tensor& x) { multiply(out, g.t(), x, {}); }

void add_of_weight(Tensor& sum, const Tensor& g, const Tensor& x) { multiply(sum, g.t(), x, {}, true); }

}  // namespace fastrnn::products
