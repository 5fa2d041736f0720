#include "ops/cpu/products.h"

#include <algorithm>
#include <atomic>
#include <initializer_list>

#include "cpu/dispatch.h"
#include "cpu/float_mode.h"
#include "cpu/team.h"
#include "ops/cell.h"
#include "ops/cpu/blas.h"
#include "ops/cpu/buffers.h"
#include "ops/cpu/precision.h"
#include "ops/cpu/thread_limit.h"

namespace fastrnn {

namespace {

// For few rows the overhead dominates: BLAS takes some microseconds before it starts. Reading the weights once takes
// both the same time, but BLAS computes faster, so that each further row reduces the gain. (Above kMost products use
// threads.)
constexpr int64_t kMostRows = 8, kFurther = 200'000, kMost = 3'000'000;

std::atomic<bool> invariant{false};

const void* data_of(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

bool dense_matrix(const Tensor& t) {
  return !t.is_neg() && (t.stride(0) == 1 || t.stride(1) == 1) && t.stride(0) > 0 && t.stride(1) > 0;
}

// The kernel for a float32 product by parts, if allowed and faster, else null
auto in_parts(int64_t rows, int64_t columns, int64_t depth) -> int (*)(const LargeProduct&) {
  constexpr int64_t kLeast = 32, kLeastProducts = 1 << 20;
  const auto& kernels = product_kernels().in_parts;
  const bool small = std::min({rows, columns, depth}) < kLeast || rows * columns * depth < kLeastProducts;
  if (kernels[0] == nullptr || (small && !products::batch_invariant())) return nullptr;
  const int parts = parts_allowed();
  return parts > 0 ? kernels[parts - 1] : nullptr;
}

// The kernel for a large product of these matrices, or null to use BLAS
auto large_kernel(const Tensor& out, const Tensor& a, const Tensor& b) -> int (*)(const LargeProduct&) {
  const auto type = a.scalar_type();
  if (b.scalar_type() != type || !dense_matrix(a) || !dense_matrix(b) || !dense_matrix(out) || out.stride(1) != 1) {
    return nullptr;
  }
  const int64_t rows = out.size(0), columns = out.size(1), depth = a.size(1);
  if (rows == 0 || columns == 0 || depth == 0) return nullptr;
  if (const auto kernel = type == at::kFloat ? in_parts(rows, columns, depth) : nullptr) return kernel;
  // Packing b takes as long as multiplying about 30 rows. BLAS skips it for few rows, but is several times slower in 16
  // bits, unless the processor multiplies bfloat16 itself.
  const bool native = type == at::kBFloat16 && product_kernels().in_parts[0] != nullptr;
  const int64_t least_rows = a.element_size() >= 4 ? 512 : (native ? 256 : 64);
  constexpr int64_t kLeast = 32;
  const bool pays = rows >= least_rows && columns >= kLeast && depth >= kLeast && rows * columns * depth >= kMost;
  return pays || products::batch_invariant() ? product_kernels().large[static_cast<int>(storage_format<Format>(type))]
                                             : nullptr;
}

// out = a·b (+ bias), or with `add` out + a·b
void large(Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& bias, bool add, int64_t links = 0) {
  const auto kernel = large_kernel(out, a, b);
  if (kernel == nullptr) return blas::product(out, a, b, bias, add, links);
  const OptionalTensor dense_bias = bias ? OptionalTensor(bias->contiguous()) : bias;
  LargeProduct args{};
  args.rows = out.size(0), args.columns = out.size(1), args.depth = a.size(1);
  args.a = a.const_data_ptr(), args.a_row = a.stride(0), args.a_depth = a.stride(1);
  args.b = b.const_data_ptr(), args.b_depth = b.stride(0), args.b_column = b.stride(1);
  args.bias = data_of(dense_bias);
  args.out = out.mutable_data_ptr(), args.out_row = out.stride(0);
  args.add = add;
  args.threads = ThreadLimit::alone() ? 1 : static_cast<int>(ThreadLimit::threads());
  Buffers().verify(kernel(args));
}

// Index in ProductKernels of the product of N rows with a matrix of this many elements, or -1 for a large one
int small(const Tensor& a, const Tensor& b, int64_t rows, int64_t elements) {
  if (products::batch_invariant() || rows == 0 || rows > kMostRows || (rows - 1) * elements > kFurther ||
      elements == 0) {
    return -1;
  }
  const auto type = a.scalar_type();
  if (type != b.scalar_type() || !a.is_contiguous() || !b.is_contiguous() || a.is_neg() || b.is_neg()) return -1;
  return type == at::kFloat ? 0 : (type == at::kDouble ? 1 : -1);
}

// A product of few rows by one of the small kernels.
struct SmallJob {
  void (*kernel)(const SmallProduct&);
  SmallProduct product;
  enum Along { kColumns, kRowsOfB, kDepth } along;  // divided among threads: columns of b and out, rows of b, or depth
  int64_t elements;                                 // of the matrix that is read or written once
  int64_t bytes, bytes_of_b;                        // of one element

  void compute(int64_t piece, int64_t pieces) const {
    constexpr int64_t kGrain = 64;
    const int64_t size = along == kDepth ? product.depth : product.columns, grains = (size + kGrain - 1) / kGrain;
    const int64_t from = grains * piece / pieces * kGrain;
    const int64_t count = std::min(size, grains * (piece + 1) / pieces * kGrain) - from;
    if (count <= 0) return;
    const auto moved_by = [](const void* p, int64_t distance) {
      return p == nullptr ? nullptr : static_cast<const char*>(p) + distance;
    };
    const auto moved = [&](const void* p, int64_t elements) { return moved_by(p, elements * bytes); };
    SmallProduct part = product;
    if (along == kDepth) {
      part.depth = count;
      part.a = moved(part.a, from);
      part.out = static_cast<char*>(part.out) + from * part.out_row * bytes;
    } else {
      part.columns = count;
      part.b = moved_by(part.b, (along == kRowsOfB ? from * part.b_row : from) * bytes_of_b);
      if (part.scales != nullptr) part.scales += from;
      part.bias = moved(part.bias, from);
      part.out = static_cast<char*>(part.out) + from * bytes;
    }
    kernel(part);
  }
};

// Jobs whose matrices are together large enough to use all cores' caches or bandwidth. No output's sum depends on the
// pieces. A thread starts with the same pieces every time, because they may still be in its core's private cache.
struct Shared {
  const SmallJob* jobs;
  int64_t count, pieces;
  std::atomic<uint64_t> taken{0};

  static constexpr int64_t kMostPieces = 32;  // of each of two jobs: one bit per piece in `taken`

  void take(int64_t job, int64_t piece) {
    const uint64_t bit = uint64_t{1} << (job * kMostPieces + piece);
    if ((taken.fetch_or(bit, std::memory_order_relaxed) & bit) == 0) jobs[job].compute(piece, pieces);
  }

  static void work(void* self, Member& member) {
    auto* shared = static_cast<Shared*>(self);
    for (int64_t turn = 0; turn < shared->pieces; ++turn) {
      const int64_t piece = (member.rank + turn) % shared->pieces;
      for (int64_t job = 0; job < shared->count; ++job) shared->take(job, piece);
    }
  }
};

// Runs one or two jobs.
void run_small(std::initializer_list<SmallJob> jobs) {
  constexpr int64_t kWorthSharing = 600'000;  // bytes: about 10 µs for one thread; a parallel region costs 3 µs
  int64_t bytes = 0;
  for (const SmallJob& job : jobs) bytes += job.elements * job.bytes_of_b;
  const int threads = ThreadLimit::alone() || bytes < kWorthSharing ? 1 : ThreadLimit::threads();
  if (threads == 1) {
    const FloatMode flush(FloatMode::flushing());
    for (const SmallJob& job : jobs) job.compute(0, 1);
    return;
  }
  Shared shared{jobs.begin(), static_cast<int64_t>(jobs.size()), std::min<int64_t>(threads, Shared::kMostPieces)};
  run_team(static_cast<int>(shared.pieces), &Shared::work, &shared);
}

// The job of x·wᵀ (+ bias) with the kernel for few rows.
SmallJob rows_job(void (*kernel)(const SmallProduct&), const products::Forward& f) {
  const int64_t depth = f.w.size(1), columns = f.w.size(0);
  SmallProduct product{.rows = f.x.size(0),
                       .columns = columns,
                       .depth = depth,
                       .a = f.x.const_data_ptr(),
                       .b = f.w.const_data_ptr(),
                       .bias = data_of(f.bias),
                       .out = f.out.mutable_data_ptr(),
                       .a_row = depth,
                       .b_row = depth,
                       .out_row = columns,
                       .add = false};
  if (f.scales) product.scales = f.scales->const_data_ptr<float>();
  return {kernel, product, SmallJob::kRowsOfB, f.w.numel(), f.x.element_size(), f.w.element_size()};
}

// The kernel for few rows that computes f; null if f is a large product.
auto kernel_for_few_rows(const products::Forward& f) -> void (*)(const SmallProduct&) {
  if (f.w.scalar_type() != f.x.scalar_type()) return product_kernels().narrow[f.scales ? 1 : 0];
  const bool dense = f.out.is_contiguous() && (!f.bias || f.bias->is_contiguous());
  const int kind = dense ? small(f.x, f.w, f.x.size(0), f.w.numel()) : -1;
  return kind < 0 ? nullptr : product_kernels().by_rows[kind];
}

void by_columns(Tensor& out, const Tensor& g, const Tensor& w, bool add) {
  const int kind = out.is_contiguous() ? small(g, w, g.size(0), w.numel()) : -1;
  if (kind < 0) return large(out, g, w, {}, add);
  const int64_t depth = g.size(1), columns = w.size(1);
  const SmallProduct product{
      g.size(0), columns, depth, g.const_data_ptr(), w.const_data_ptr(), nullptr, out.mutable_data_ptr(), depth,
      columns,   columns, add};
  const int64_t bytes = w.element_size();
  run_small({{product_kernels().by_columns[kind], product, SmallJob::kColumns, w.numel(), bytes, bytes}});
}

// Index in ProductKernels of the sum of N outer products, or -1. Up to the size where BLAS uses threads, its overhead
// exceeds the time of our own kernel, because it packs both factors.
int outer_kind(const Tensor& out, const Tensor& g, const Tensor& x) {
  const auto type = g.scalar_type();
  const auto rows_dense = [&](const Tensor& t) {
    return t.scalar_type() == type && !t.is_neg() && (t.stride(1) == 1 || t.size(1) == 1);
  };
  const int64_t rows = g.size(0);
  if (rows <= kMostRows && g.is_contiguous() && x.is_contiguous()) return small(g, x, rows, out.numel());
  // BLAS is least accurate for narrow results, and far below its peak speed.
  constexpr int64_t kNarrow = 16, kMostNarrow = 10 * kMost;
  if (rows * out.numel() >= (out.size(1) < kNarrow ? kMostNarrow : kMost) || out.numel() == 0 || rows == 0 ||
      !out.is_contiguous() || !rows_dense(g) || !rows_dense(x) ||
      (type == at::kFloat && in_parts(out.size(0), out.size(1), rows) != nullptr)) {
    return -1;
  }
  return type == at::kFloat ? 0 : (type == at::kDouble ? 1 : -1);
}

void outer(Tensor& out, const Tensor& g, const Tensor& x, bool add) {
  // BLAS accumulates about 400 products in one chain; torch.nn accumulates each step and then the steps: with 20 steps
  // of 20 rows half the error.
  constexpr int64_t kLinks = 96;
  const int kind = out.is_contiguous() ? outer_kind(out, g, x) : -1;
  if (kind < 0) return large(out, g.t(), x, {}, add, kLinks);
  const int64_t depth = g.size(1), columns = x.size(1);
  const SmallProduct product{
      g.size(0),   columns, depth, g.const_data_ptr(), x.const_data_ptr(), nullptr, out.mutable_data_ptr(), g.stride(0),
      x.stride(0), columns, add};
  const int64_t bytes = out.element_size();
  run_small({{product_kernels().outer[kind], product, SmallJob::kDepth, out.numel(), bytes, bytes}});
}

}  // namespace

void products::set_batch_invariant(bool on) { invariant = on; }
bool products::batch_invariant() { return invariant.load(std::memory_order_relaxed); }

Tensor products::empty(at::IntArrayRef sizes, const Tensor& like) { return new_tensor(sizes, like.scalar_type()); }

Tensor products::forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  Tensor out = empty({x.size(0), w.size(0)}, w);
  forward_one({out, x, w, bias, {}});
  return out;
}

void products::forward_into(Tensor out, const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  forward_one({out, x, w, bias, {}});
}

void products::forward_both(const Forward& first, const Forward& second) {
  const auto one = kernel_for_few_rows(first), two = kernel_for_few_rows(second);
  if (one != nullptr && two != nullptr) return run_small({rows_job(one, first), rows_job(two, second)});
  for (const Forward* f : {&first, &second}) forward_one(*f);
}

void products::forward_one(const Forward& f) {
  const auto kernel = kernel_for_few_rows(f);
  kernel == nullptr ? large(f.out, f.x, f.w.t(), f.bias, false) : run_small({rows_job(kernel, f)});
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
