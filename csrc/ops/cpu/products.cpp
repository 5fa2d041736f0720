#include "ops/cpu/products.h"

#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <atomic>

#include "cpu/dispatch.h"
#include "cpu/float_mode.h"
#include "cpu/team.h"
#include "ops/cpu/buffers.h"
#include "ops/cpu/library.h"
#include "ops/cpu/modest.h"
#include "ops/cpu/precision.h"

namespace fastrnn {

namespace {

// Few rows are a matter of what surrounds the product: the library takes some microseconds before it begins. Reading
// the weights once takes both the same time; the library's arithmetic is the better one, so that each further row gives
// back some of the gain. (Beyond kMost products have threads.)
constexpr int64_t kMostRows = 8, kFurther = 200'000, kMost = 3'000'000;

std::atomic<bool> invariant{false};

const void* data_of(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

bool dense_matrix(const Tensor& t) {
  return !t.is_neg() && (t.stride(0) == 1 || t.stride(1) == 1) && t.stride(0) > 0 && t.stride(1) > 0;
}

// The kernel for a float32 product by parts, where that is allowed and faster, or null.
auto in_parts(int64_t rows, int64_t columns, int64_t depth) -> int (*)(const LargeProduct&) {
  constexpr int64_t kLeast = 32, kLeastProducts = 1 << 20;
  const auto& kernels = product_kernels().in_parts;
  const bool small = std::min({rows, columns, depth}) < kLeast || rows * columns * depth < kLeastProducts;
  if (kernels[0] == nullptr || (small && !products::batch_invariant())) return nullptr;
  const int parts = parts_allowed();
  return parts > 0 ? kernels[parts - 1] : nullptr;
}

// The kernel for a large product of these matrices, or null: it is the library's.
auto large_kernel(const Tensor& out, const Tensor& a, const Tensor& b) -> int (*)(const LargeProduct&) {
  const auto type = a.scalar_type();
  const bool single = type == at::kFloat, known = single || type == at::kDouble;
  if (!known || b.scalar_type() != type || !dense_matrix(a) || !dense_matrix(b) || !dense_matrix(out) ||
      out.stride(1) != 1) {
    return nullptr;
  }
  const int64_t rows = out.size(0), columns = out.size(1), depth = a.size(1);
  if (rows == 0 || columns == 0 || depth == 0) return nullptr;
  if (const auto kernel = single ? in_parts(rows, columns, depth) : nullptr) return kernel;
  // Laying out b takes as long as multiplying some 30 rows, which the library does not need for few.
  constexpr int64_t kLeastRows = 512, kLeast = 32;
  const bool pays = rows >= kLeastRows && columns >= kLeast && depth >= kLeast && rows * columns * depth >= kMost;
  return pays || products::batch_invariant() ? product_kernels().large[single ? 0 : 1] : nullptr;
}

// out = a·b (+ bias), or with `add` out + a·b.
void large(Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& bias, bool add, int64_t links = 0) {
  const auto kernel = large_kernel(out, a, b);
  if (kernel == nullptr) return library::product(out, a, b, bias, add, links);
  const OptionalTensor dense_bias = bias ? OptionalTensor(bias->contiguous()) : bias;
  LargeProduct args{};
  args.rows = out.size(0), args.columns = out.size(1), args.depth = a.size(1);
  args.a = a.const_data_ptr(), args.a_row = a.stride(0), args.a_depth = a.stride(1);
  args.b = b.const_data_ptr(), args.b_depth = b.stride(0), args.b_column = b.stride(1);
  args.bias = data_of(dense_bias);
  args.out = out.mutable_data_ptr(), args.out_row = out.stride(0);
  args.add = add;
  args.threads = Modest::alone() ? 1 : static_cast<int>(Modest::threads());
  Buffers().verify(kernel(args));
}

// Where in ProductKernels the product of N rows with a matrix of so many elements is, or -1: it is a large one.
int small(const Tensor& a, const Tensor& b, int64_t rows, int64_t elements) {
  if (products::batch_invariant() || rows == 0 || rows > kMostRows || (rows - 1) * elements > kFurther ||
      elements == 0) {
    return -1;
  }
  const auto type = a.scalar_type();
  if (type != b.scalar_type() || !a.is_contiguous() || !b.is_contiguous() || a.is_neg() || b.is_neg()) return -1;
  return type == at::kFloat ? 0 : (type == at::kDouble ? 1 : -1);
}

// A product of few rows whose matrix is worth the cores' caches, or their reading speed, together: each thread takes
// pieces of the outputs, and the sum of none depends on it.
struct Shared {
  enum Along { kColumns, kDepth };  // which of `product`'s sizes is cut
  void (*const kernel)(const SmallProduct&);
  const SmallProduct product;
  const Along along;
  const bool rows_of_b;             // of the columns: rows of b (else columns of b)
  const int64_t bytes, bytes_of_b;  // of an element
  const int64_t pieces;
  std::atomic<int64_t> next{0};

  void compute(int64_t piece) const {
    constexpr int64_t kGrain = 64;
    const int64_t size = along == kColumns ? product.columns : product.depth, grains = (size + kGrain - 1) / kGrain;
    const int64_t from = grains * piece / pieces * kGrain;
    const int64_t count = std::min(size, grains * (piece + 1) / pieces * kGrain) - from;
    if (count <= 0) return;
    const auto moved_by = [](const void* p, int64_t distance) {
      return p == nullptr ? nullptr : static_cast<const char*>(p) + distance;
    };
    const auto moved = [&](const void* p, int64_t elements) { return moved_by(p, elements * bytes); };
    SmallProduct part = product;
    if (along == kColumns) {
      part.columns = count;
      part.b = moved_by(part.b, (rows_of_b ? from * part.b_row : from) * bytes_of_b);
      if (part.scales != nullptr) part.scales += from;
      part.bias = moved(part.bias, from);
      part.out = static_cast<char*>(part.out) + from * bytes;
    } else {
      part.depth = count;
      part.a = moved(part.a, from);
      part.out = static_cast<char*>(part.out) + from * part.out_row * bytes;
    }
    kernel(part);
  }

  static void work(void* self, Member&) {
    auto* shared = static_cast<Shared*>(self);
    for (int64_t piece = shared->next++; piece < shared->pieces; piece = shared->next++) shared->compute(piece);
  }
};

// `elements`: of the matrix that is read or written once.
void run_small(void (*kernel)(const SmallProduct&), const SmallProduct& product, Shared::Along along, bool rows_of_b,
               int64_t elements, int64_t bytes, int64_t bytes_of_b = 0) {
  if (bytes_of_b == 0) bytes_of_b = bytes;
  constexpr int64_t kWorthSharing = 600'000;  // bytes: some 10 µs for one thread, a parallel region takes 3
  const int threads = Modest::alone() || elements * bytes_of_b < kWorthSharing ? 1 : Modest::threads();
  if (threads == 1) {
    const FloatMode flush(FloatMode::flushing());
    return kernel(product);
  }
  Shared shared{kernel, product, along, rows_of_b, bytes, bytes_of_b, threads};
  run_team(threads, &Shared::work, &shared);
}

// x·wᵀ (+ bias)
void by_rows(Tensor& out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  const int64_t depth = w.size(1), rows = x.size(0), columns = w.size(0);
  const int kind = out.is_contiguous() && (!bias || bias->is_contiguous()) ? small(x, w, rows, w.numel()) : -1;
  if (kind < 0) return large(out, x, w.t(), bias, false);
  const SmallProduct product{
      rows,  columns, depth, x.const_data_ptr(), w.const_data_ptr(), data_of(bias), out.mutable_data_ptr(), depth,
      depth, columns, false};
  run_small(product_kernels().by_rows[kind], product, Shared::kColumns, true, w.numel(), w.element_size());
}

void by_columns(Tensor& out, const Tensor& g, const Tensor& w, bool add) {
  const int kind = out.is_contiguous() ? small(g, w, g.size(0), w.numel()) : -1;
  if (kind < 0) return large(out, g, w, {}, add);
  const int64_t depth = g.size(1), columns = w.size(1);
  const SmallProduct product{
      g.size(0), columns, depth, g.const_data_ptr(), w.const_data_ptr(), nullptr, out.mutable_data_ptr(), depth,
      columns,   columns, add};
  run_small(product_kernels().by_columns[kind], product, Shared::kColumns, false, w.numel(), w.element_size());
}

// Where in ProductKernels the sum of N outer products is, or -1. Up to where BLAS has threads its ceremony costs more
// than our own kernel takes: it packs both factors.
int outer_kind(const Tensor& out, const Tensor& g, const Tensor& x) {
  const auto type = g.scalar_type();
  const auto rows_dense = [&](const Tensor& t) {
    return t.scalar_type() == type && !t.is_neg() && (t.stride(1) == 1 || t.size(1) == 1);
  };
  const int64_t rows = g.size(0);
  if (rows <= kMostRows && g.is_contiguous() && x.is_contiguous()) return small(g, x, rows, out.numel());
  // BLAS is least exact where the result is narrow, and far from its speed.
  constexpr int64_t kNarrow = 16, kMostNarrow = 10 * kMost;
  if (rows * out.numel() >= (out.size(1) < kNarrow ? kMostNarrow : kMost) || out.numel() == 0 || rows == 0 ||
      !out.is_contiguous() || !rows_dense(g) || !rows_dense(x) ||
      (type == at::kFloat && in_parts(out.size(0), out.size(1), rows) != nullptr)) {
    return -1;
  }
  return type == at::kFloat ? 0 : (type == at::kDouble ? 1 : -1);
}

void outer(Tensor& out, const Tensor& g, const Tensor& x, bool add) {
  // BLAS adds up some 400 products in one chain, torch.nn those of each step, and then these sums: with 20 steps of 20
  // rows half the error.
  constexpr int64_t kLinks = 96;
  const int kind = out.is_contiguous() ? outer_kind(out, g, x) : -1;
  if (kind < 0) return large(out, g.t(), x, {}, add, kLinks);
  const int64_t depth = g.size(1), columns = x.size(1);
  const SmallProduct product{
      g.size(0),   columns, depth, g.const_data_ptr(), x.const_data_ptr(), nullptr, out.mutable_data_ptr(), g.stride(0),
      x.stride(0), columns, add};
  run_small(product_kernels().outer[kind], product, Shared::kDepth, false, out.numel(), out.element_size());
}

}  // namespace

void products::set_batch_invariant(bool on) { invariant = on; }
bool products::batch_invariant() { return invariant.load(std::memory_order_relaxed); }

Tensor products::empty(at::IntArrayRef sizes, const Tensor& like) {
  return Tensor(at::detail::empty_cpu(sizes, like.scalar_type()));
}

Tensor products::forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  Tensor out = empty({x.size(0), w.size(0)}, w);
  by_rows(out, x, w, bias);
  return out;
}

void products::forward_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  by_rows(out, x, w, bias);
}

void products::forward_narrow_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& scales,
                                   const OptionalTensor& bias) {
  const int64_t depth = w.size(1), columns = w.size(0);
  SmallProduct product{
      x.size(0), columns, depth, x.const_data_ptr(), w.const_data_ptr(), data_of(bias), out.mutable_data_ptr(), depth,
      depth,     columns, false};
  const bool eight = w.scalar_type() == at::kChar;
  if (eight) product.scales = scales->const_data_ptr<float>();
  run_small(product_kernels().narrow[eight ? 1 : 0], product, Shared::kColumns, true, w.numel(), 4, w.element_size());
}

Tensor products::of_input(const Tensor& g, const Tensor& w) {
  Tensor out = empty({g.size(0), w.size(1)}, g);
  by_columns(out, g, w, false);
  return out;
}

void products::add_of_input(Tensor sum, const Tensor& g, const Tensor& w) { by_columns(sum, g, w, true); }

Tensor products::of_weight(const Tensor& g, const Tensor& x) {
  Tensor out = empty({g.size(1), x.size(1)}, g);
  outer(out, g, x, false);
  return out;
}

void products::of_weight_into(Tensor out, const Tensor& g, const Tensor& x) { outer(out, g, x, false); }
void products::add_of_weight(Tensor sum, const Tensor& g, const Tensor& x) { outer(sum, g, x, true); }

}  // namespace fastrnn
