#include "binding/products.h"

#include <ATen/EmptyTensor.h>

#include "binding/library.h"
#include "cpu/dispatch.h"

namespace fastrnn::products {

namespace {

// Few rows are a matter of what surrounds the product: the library takes some microseconds before it begins. Reading
// the weights once takes both the same time; the library's arithmetic is the better one, so that each further row gives
// back some of the gain. (Beyond kMost the library has threads.)
constexpr int64_t kMostRows = 8, kFurther = 200'000, kMost = 3'000'000;

// Where in SmallKernels the product of N rows with a matrix of so many elements is, or -1: the library's.
int small(const Tensor& a, const Tensor& b, int64_t rows, int64_t elements) {
  if (rows == 0 || rows > kMostRows || (rows - 1) * elements > kFurther || rows * elements > kMost || elements == 0) {
    return -1;
  }
  const auto type = a.scalar_type();
  if (type != b.scalar_type() || !a.is_contiguous() || !b.is_contiguous() || a.is_neg() || b.is_neg()) return -1;
  return type == at::kFloat ? 0 : (type == at::kDouble ? 1 : -1);
}

const void* data_of(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// x·wᵀ (+ bias)
void by_rows(Tensor& out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  const int64_t depth = w.size(1), rows = x.size(0);
  const int kind = out.is_contiguous() && (!bias || bias->is_contiguous()) ? small(x, w, rows, w.numel()) : -1;
  if (kind < 0) return library::product(out, x, w.t(), bias);
  small_kernels().by_rows[kind](
      {rows, w.size(0), depth, x.const_data_ptr(), w.const_data_ptr(), data_of(bias), out.mutable_data_ptr(), false});
}

void by_columns(Tensor& out, const Tensor& g, const Tensor& w, bool add) {
  const int kind = out.is_contiguous() ? small(g, w, g.size(0), w.numel()) : -1;
  if (kind < 0) return library::product(out, g, w, {}, add);
  small_kernels().by_columns[kind](
      {g.size(0), w.size(1), g.size(1), g.const_data_ptr(), w.const_data_ptr(), nullptr, out.mutable_data_ptr(), add});
}

void outer(Tensor& out, const Tensor& g, const Tensor& x, bool add) {
  const int kind = out.is_contiguous() ? small(g, x, g.size(0), out.numel()) : -1;
  if (kind < 0) return library::product(out, g.t(), x, {}, add);
  small_kernels().outer[kind](
      {g.size(0), x.size(1), g.size(1), g.const_data_ptr(), x.const_data_ptr(), nullptr, out.mutable_data_ptr(), add});
}

}  // namespace

Tensor empty(at::IntArrayRef sizes, const Tensor& like) {
  return Tensor(at::detail::empty_cpu(sizes, like.scalar_type()));
}

Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  const int64_t last = x.dim() - 1;
  if (x.dim() == 2) {
    Tensor out = empty({x.size(0), w.size(0)}, w);
    by_rows(out, x, w, bias);
    return out;
  }
  const Tensor rows = x.reshape({-1, x.size(last)});
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = w.size(0);
  return forward(rows, w, bias).view(sizes);
}

void forward_into(Tensor& out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  by_rows(out, x, w, bias);
}

Tensor of_input(const Tensor& g, const Tensor& w) {
  Tensor out = empty({g.size(0), w.size(1)}, g);
  by_columns(out, g, w, false);
  return out;
}

void add_of_input(Tensor& sum, const Tensor& g, const Tensor& w) { by_columns(sum, g, w, true); }

Tensor of_weight(const Tensor& g, const Tensor& x) {
  Tensor out = empty({g.size(1), x.size(1)}, g);
  outer(out, g, x, false);
  return out;
}

void add_of_weight(Tensor& sum, const Tensor& g, const Tensor& x) { outer(sum, g, x, true); }

}  // namespace fastrnn::products
