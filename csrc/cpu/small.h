// Products of few rows, straight from weights as they lie in memory: packing them, or the library's own ceremony, would
// cost more than the multiply-adds.
//
// Each output is summed in an order that depends on the depth alone: not on the other rows, nor on the threads.
#pragma once

#include "cpu/pack.h"

namespace FASTRNN_NAMESPACE {

// sum[i] holds lanes that are to be added up: their sums, as the lanes of one vector.
template <int Distance, class C>
FASTRNN_FN void fold_lanes(Vec<C>* sum) {
  if constexpr (Distance > 0) {
    FASTRNN_UNROLL
    for (int i = 0; i < Distance; ++i) {
      exchange<Distance>(sum[i], sum[i + Distance], typename NumbersTo<Vec<C>::kLanes>::type());
      sum[i] = sum[i] + sum[i + Distance];
    }
    fold_lanes<Distance / 2>(sum);
  }
}

// One row of `a` times `kLanes` rows of `b`, `stride` apart.
template <class C>
FASTRNN_FN Vec<C> dots(const C* a, const C* b, int64_t stride, int64_t depth) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  V sum[kLanes];
  FASTRNN_UNROLL
  for (int i = 0; i < kLanes; ++i) sum[i] = V::zero();
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    const V x = load(a + k);
    FASTRNN_UNROLL
    for (int i = 0; i < kLanes; ++i) sum[i] = fma(x, load(b + i * stride + k), sum[i]);
  }
  if (k < depth) {
    const int rest = static_cast<int>(depth - k);
    const V x = load_some(a + k, rest);
    FASTRNN_UNROLL
    for (int i = 0; i < kLanes; ++i) sum[i] = fma(x, load_some(b + i * stride + k, rest), sum[i]);
  }
  fold_lanes<kLanes / 2>(sum);
  return sum[0];
}

// out (N, M) = a (N, K) · b (M, K)ᵀ + bias (M)
template <class C>
void small_by_rows(const SmallProduct& p) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  const C *a = static_cast<const C*>(p.a), *b = static_cast<const C*>(p.b), *bias = static_cast<const C*>(p.bias);
  C* out = static_cast<C*>(p.out);
  const int64_t M = p.columns, K = p.depth;
  int64_t m = 0;
  for (; m + kLanes <= M; m += kLanes) {
    const V start = bias != nullptr ? load(bias + m) : V::zero();
    for (int64_t n = 0; n < p.rows; ++n)
      (start + dots(a + n * p.a_row, b + m * p.b_row, p.b_row, K)).store(out + n * p.out_row + m);
  }
  if (m == M) return;
  // The last few: once more those before them if there are enough, else one after the other (a row `0` apart).
  const int rest = static_cast<int>(M - m);
  for (int64_t n = 0; n < p.rows; ++n) {
    alignas(64) C lanes[kLanes];
    for (int i = 0; i < rest; ++i) {
      if (M < kLanes || i == 0) {
        const int64_t row = M < kLanes ? m + i : M - kLanes;
        dots(a + n * p.a_row, b + row * p.b_row, M < kLanes ? 0 : p.b_row, K).store(lanes);
      }
      const C sum = M < kLanes ? lanes[0] : lanes[kLanes - rest + i];
      out[n * p.out_row + m + i] = (bias != nullptr ? bias[m + i] : C(0)) + sum;
    }
  }
}

// NV vectors of out (N, K) = a (N, M) · b (M, K), or (add) added to out; one after the other over M in chains of 64.
template <class C, int NV, bool Full>
FASTRNN_FN void small_columns(const SmallProduct& p, int64_t n, int64_t k, int lanes_left) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes, kTurns = 2;
  constexpr int64_t kLinks = 64;
  const Lanes<Full> lanes{lanes_left};
  const int64_t M = p.depth, K = p.b_row;
  const C *a = static_cast<const C*>(p.a) + n * p.a_row, *b = static_cast<const C*>(p.b) + k;
  C* out = static_cast<C*>(p.out) + n * p.out_row + k;
  V total[NV];
  FASTRNN_UNROLL
  for (int v = 0; v < NV; ++v) total[v] = p.add ? lanes.load(out + v * kLanes) : V::zero();
  for (int64_t begin = 0; begin < M; begin += kLinks) {
    const int64_t end = smaller(M, begin + kLinks);
    V sum[kTurns][NV];
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) sum[0][v] = sum[1][v] = V::zero();
    int64_t m = begin;
    for (; m + kTurns <= end; m += kTurns) {
      FASTRNN_UNROLL
      for (int t = 0; t < kTurns; ++t) {
        const V x(a[m + t]);
        FASTRNN_UNROLL
        for (int v = 0; v < NV; ++v) sum[t][v] = fma(x, lanes.load(b + (m + t) * K + v * kLanes), sum[t][v]);
      }
    }
    if (m < end) {
      const V x(a[m]);
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) sum[0][v] = fma(x, lanes.load(b + m * K + v * kLanes), sum[0][v]);
    }
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) total[v] = total[v] + (sum[0][v] + sum[1][v]);
  }
  FASTRNN_UNROLL
  for (int v = 0; v < NV; ++v) lanes.store(total[v], out + v * kLanes);
}

template <class C>
void small_by_columns(const SmallProduct& p) {
  constexpr int kLanes = Vec<C>::kLanes, kBlock = 4;
  for (int64_t n = 0; n < p.rows; ++n) {
    int64_t k = 0;
    for (; k + kBlock * kLanes <= p.columns; k += kBlock * kLanes) small_columns<C, kBlock, true>(p, n, k, kLanes);
    for (; k + kLanes <= p.columns; k += kLanes) small_columns<C, 1, true>(p, n, k, kLanes);
    if (k < p.columns) small_columns<C, 1, false>(p, n, k, static_cast<int>(p.columns - k));
  }
}

// out (M, K) = a (N, M)ᵀ · b (N, K), or (add) added to out.
template <class C>
void small_outer(const SmallProduct& p) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  const C *a = static_cast<const C*>(p.a), *b = static_cast<const C*>(p.b);
  const int64_t N = p.rows, M = p.depth, K = p.columns;
  for (int64_t m = 0; m < M; ++m) {
    C* out = static_cast<C*>(p.out) + m * p.out_row;
    int64_t k = 0;
    for (; k + kLanes <= K; k += kLanes) {
      V sum = p.add ? load(out + k) : V::zero();
      for (int64_t n = 0; n < N; ++n) sum = fma(V(a[n * p.a_row + m]), load(b + n * p.b_row + k), sum);
      sum.store(out + k);
    }
    if (k == K) continue;
    const int rest = static_cast<int>(K - k);
    V sum = p.add ? load_some(out + k, rest) : V::zero();
    for (int64_t n = 0; n < N; ++n) sum = fma(V(a[n * p.a_row + m]), load_some(b + n * p.b_row + k, rest), sum);
    store_some(sum, out + k, rest);
  }
}

}  // namespace FASTRNN_NAMESPACE
