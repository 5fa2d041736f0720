#include "ops/cpu/blas.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "cpu/float_mode.h"
#include "cpu/team.h"
#include "ops/cpu/thread_limit.h"

namespace fastrnn::blas {

namespace {

using at::Tensor;

// A product of fewer multiply-adds finishes before a second thread has started.
constexpr int64_t kLeast = 3'000'000;
// Long products are cut into pieces of this many multiply-adds, one thread each, a few times as many as threads.
constexpr int64_t kPiece = 10'000'000, kMostPieces = 16;
// Minimum rows or columns of a piece: with fewer, BLAS spends more time packing than computing.
constexpr int64_t kLeastRows = 16;
// BLAS accumulates products with a vector, or with few results, sequentially: their error grows with the depth.
constexpr int64_t kChain = 64, kFewSums = 16;
constexpr int64_t kMostChains = 16;

struct Job {
  Tensor& out;
  const Tensor& a;
  const Tensor& b;
  const std::optional<Tensor>& bias;
  bool add;
  int64_t pieces;
  bool by_rows;
  int64_t chains;  // pieces of the depth, accumulated in turn
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void compute(int64_t piece) const {
    const int dim = by_rows ? 0 : 1;
    const int64_t size = out.size(dim), from = size * piece / pieces, count = size * (piece + 1) / pieces - from;
    Tensor target = out.narrow(dim, from, count);
    const Tensor left = by_rows ? a.narrow(0, from, count) : a, right = by_rows ? b : b.narrow(1, from, count);
    for (int64_t k = 0; chains > 1 && k < chains; ++k) {
      const int64_t depth = a.size(1), first = depth * k / chains, links = depth * (k + 1) / chains - first;
      const Tensor l = left.narrow(1, first, links), r = right.narrow(0, first, links);
      k > 0 || add ? target.addmm_(l, r) : at::mm_out(target, l, r);
    }
    if (chains > 1) return;
    if (add) {
      target.addmm_(left, right);
    } else if (bias) {
      at::addmm_out(target, by_rows ? *bias : bias->narrow(0, from, count), left, right);
    } else {
      at::mm_out(target, left, right);
    }
  }

  // An exception must not leave a parallel region.
  void work() {
    const FloatMode flush(FloatMode::flushing());
    // Even inside a team: BLAS takes other code paths, with other bits, if it could start threads.
    const ThreadLimit::Single single;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::AutoDispatchBelowADInplaceOrView plain;
    for (int64_t piece = next++; piece < pieces; piece = next++) {
      try {
        compute(piece);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  }
};

void member_works(void* job, Member&) { static_cast<Job*>(job)->work(); }

// out = a·b, or out + a·b: sums of kChain products each, then the sum of these
void in_chains(Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  const FloatMode flush(FloatMode::flushing());
  const ThreadLimit::Single single;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::AutoDispatchBelowADInplaceOrView plain;
  const int64_t chains = a.size(1) / kChain, even = chains * kChain;
  const auto left = a.narrow(1, 0, even).unflatten(1, {chains, kChain}).transpose(0, 1);
  Tensor sum = at::bmm(left, b.narrow(0, 0, even).unflatten(0, {chains, kChain})).sum(0);
  if (const int64_t rest = a.size(1) - even; rest > 0)
    sum.add_(at::mm(a.narrow(1, even, rest), b.narrow(0, even, rest)));
  if (add) {
    out.add_(sum);
  } else {
    out.copy_(sum);
  }
}

}  // namespace

void product(Tensor& out, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, bool add,
             int64_t links) {
  const int64_t rows = out.size(0), columns = out.size(1), depth = a.size(1), work = rows * columns * depth;
  const bool few = rows == 1 || columns == 1 || rows * columns <= kFewSums;
  if (few && depth > kChain && !bias && a.element_size() >= 4) {
    return in_chains(out, a, b, add);
  }
  const bool by_rows = rows >= columns || rows >= kLeastRows * kMostPieces;
  const int64_t size = by_rows ? rows : columns;
  // The same pieces, and therefore the same bits, for any number of threads
  const int64_t wanted = std::min(kMostPieces, std::max<int64_t>(2, work / kPiece));
  const int64_t pieces = work < kLeast ? 1 : std::max<int64_t>(1, std::min(wanted, size / kLeastRows));
  // In 16 bits each partial sum would be rounded.
  const int64_t chains = links == 0 || a.element_size() < 4 ? 1 : std::min(kMostChains, (depth + links - 1) / links);
  Job job{out, a, b, bias, add, pieces, by_rows, chains};
  if (pieces == 1 || ThreadLimit::alone()) {
    job.work();
  } else {
    run_team(static_cast<int>(std::min<int64_t>(ThreadLimit::threads(), pieces)), &member_works, &job);
  }
  if (job.failed) std::rethrow_exception(job.error);
}

}  // namespace fastrnn::blas
