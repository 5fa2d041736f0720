// Products of few rows with unpacked weights: packing them, or calling BLAS, would cost more than the multiply-adds.
//
// The summation order of an output depends on the depth alone, not on the other rows or on the threads.
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

// One row of `a` times `kLanes` rows of `b`, `stride` apart. Each lane adds up its products in one chain.
template <class C, class W>
FASTRNN_FN Vec<C> dots(const C* a, const W* b, int64_t stride, int64_t depth) {
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

// The same in chains of at most kDotLinks products: the error grows with their length, and two lanes (float64 without
// AVX) have long ones.
constexpr int64_t kDotLinks = 128;
template <class C, class W>
FASTRNN_FN Vec<C> deep_dots(const C* a, const W* b, int64_t stride, int64_t depth) {
  constexpr int64_t kBlock = kDotLinks * Vec<C>::kLanes;
  Vec<C> total = Vec<C>::zero();
  for (int64_t k = 0; k < depth; k += kBlock) total = total + dots(a + k, b + k, stride, smaller(kBlock, depth - k));
  return total;
}

// Writes sums, with Scaled times the scales, plus the bias. sums(n, m, stride) returns the dot products of row n of `a`
// with a vector of rows of b that starts at m, `stride` apart.
template <class C, bool Scaled, class Sums>
FASTRNN_FN void outputs_by_rows(const SmallProduct& p, const Sums& sums) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  const C* bias = static_cast<const C*>(p.bias);
  C* out = static_cast<C*>(p.out);
  const int64_t M = p.columns;
  int64_t m = 0;
  for (; m + kLanes <= M; m += kLanes) {
    const V start = bias != nullptr ? load(bias + m) : V::zero();
    for (int64_t n = 0; n < p.rows; ++n) {
      V sum = sums(n, m, p.b_row);
      if constexpr (Scaled) sum = sum * V::load(p.scales + m);
      (start + sum).store(out + n * p.out_row + m);
    }
  }
  if (m == M) return;
  // The last rows of b: recompute a full vector that ends with them, or, if b is too small, one row at a time (stride
  // 0).
  const int rest = static_cast<int>(M - m);
  for (int64_t n = 0; n < p.rows; ++n) {
    alignas(64) C lanes[kLanes];
    for (int i = 0; i < rest; ++i) {
      if (M < kLanes || i == 0) sums(n, M < kLanes ? m + i : M - kLanes, M < kLanes ? 0 : p.b_row).store(lanes);
      C sum = M < kLanes ? lanes[0] : lanes[kLanes - rest + i];
      if constexpr (Scaled) sum = sum * p.scales[m + i];
      out[n * p.out_row + m + i] = (bias != nullptr ? bias[m + i] : C(0)) + sum;
    }
  }
}

template <class C, bool Deep, class W>
void by_rows(const SmallProduct& p) {
  const C* a = static_cast<const C*>(p.a);
  const W* b = static_cast<const W*>(p.b);
  outputs_by_rows<C, sizeof(W) == 1>(p, [&](int64_t n, int64_t m, int64_t stride) __attribute__((always_inline)) {
    const C* x = a + n * p.a_row;
    const W* w = b + m * p.b_row;
    return Deep ? deep_dots(x, w, stride, p.depth) : dots(x, w, stride, p.depth);
  });
}

// out (N, M) = a (N, K) · b (M, K)ᵀ + bias (M); elements of b are widened to those of `a`.
template <class C, class W = C>
void small_by_rows(const SmallProduct& p) {
  constexpr int64_t kShallow = kDotLinks * Vec<C>::kLanes;
  p.depth > kShallow ? by_rows<C, true, W>(p) : by_rows<C, false, W>(p);
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

// MB rows of `out` by NV vectors: what rows begin…end of a and b contribute, added to what is there unless `fresh`.
template <class C, int MB, int NV, bool Full>
FASTRNN_FN void outer_tile(const SmallProduct& p, int64_t m, int64_t k, Range rows, bool fresh, int lanes_left) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  const Lanes<Full> lanes{lanes_left};
  const C *a = static_cast<const C*>(p.a) + m, *b = static_cast<const C*>(p.b) + k;
  C* out = static_cast<C*>(p.out) + m * p.out_row + k;
  V sum[MB][NV];
  FASTRNN_UNROLL
  for (int i = 0; i < MB; ++i) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) sum[i][v] = V::zero();
  }
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    V x[NV];
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) x[v] = lanes.load(b + n * p.b_row + v * kLanes);
    FASTRNN_UNROLL
    for (int i = 0; i < MB; ++i) {
      const V factor(a[n * p.a_row + i]);
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) sum[i][v] = fma(factor, x[v], sum[i][v]);
    }
  }
  FASTRNN_UNROLL
  for (int i = 0; i < MB; ++i) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) {
      C* to = out + i * p.out_row + v * kLanes;
      lanes.store(fresh ? sum[i][v] : lanes.load(to) + sum[i][v], to);
    }
  }
}

template <class C, int MB>
FASTRNN_FN void outer_rows(const SmallProduct& p, int64_t m, int64_t columns, Range rows, bool fresh) {
  constexpr int kLanes = Vec<C>::kLanes, kVectors = sizeof(Vec<C>) == 64 ? 4 : 2;  // as many as registers allow
  int64_t k = 0;
  for (; k + kVectors * kLanes <= columns; k += kVectors * kLanes)
    outer_tile<C, MB, kVectors, true>(p, m, k, rows, fresh, kLanes);
  for (; k + kLanes <= columns; k += kLanes) outer_tile<C, MB, 1, true>(p, m, k, rows, fresh, kLanes);
  if (k < columns) outer_tile<C, MB, 1, false>(p, m, k, rows, fresh, static_cast<int>(columns - k));
}

// The same for NC columns and MV vectors of rows of `out`: where too few columns are left for a vector of them.
template <class C, int NC, int MV, bool Full>
FASTRNN_FN void outer_columns(const SmallProduct& p, int64_t m, int64_t k, Range rows, bool fresh, int lanes_left) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  const Lanes<Full> lanes{lanes_left};
  const C *a = static_cast<const C*>(p.a) + m, *b = static_cast<const C*>(p.b) + k;
  V sum[MV][NC];
  FASTRNN_UNROLL
  for (int v = 0; v < MV; ++v) {
    FASTRNN_UNROLL
    for (int c = 0; c < NC; ++c) sum[v][c] = V::zero();
  }
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    FASTRNN_UNROLL
    for (int v = 0; v < MV; ++v) {
      const V x = lanes.load(a + n * p.a_row + v * kLanes);
      FASTRNN_UNROLL
      for (int c = 0; c < NC; ++c) sum[v][c] = fma(V(b[n * p.b_row + c]), x, sum[v][c]);
    }
  }
  for (int v = 0; v < MV; ++v) {
    for (int c = 0; c < NC; ++c) {
      alignas(64) C values[kLanes];
      sum[v][c].store(values);
      C* to = static_cast<C*>(p.out) + (m + v * kLanes) * p.out_row + k + c;
      for (int i = 0; i < lanes_left; ++i) to[i * p.out_row] = (fresh ? C(0) : to[i * p.out_row]) + values[i];
    }
  }
}

template <class C, int NC>
FASTRNN_FN void outer_column_block(const SmallProduct& p, int64_t k, Range rows, bool fresh) {
  constexpr int kLanes = Vec<C>::kLanes, kVectors = NC == 1 ? 4 : 1;
  int64_t m = 0;
  for (; m + kVectors * kLanes <= p.depth; m += kVectors * kLanes)
    outer_columns<C, NC, kVectors, true>(p, m, k, rows, fresh, kLanes);
  for (; m + kLanes <= p.depth; m += kLanes) outer_columns<C, NC, 1, true>(p, m, k, rows, fresh, kLanes);
  if (m < p.depth) outer_columns<C, NC, 1, false>(p, m, k, rows, fresh, static_cast<int>(p.depth - m));
}

// out (M, K) = a (N, M)ᵀ · b (N, K), or (add) added to out: sums of kLinks rows each, one after the other.
template <class C>
void small_outer(const SmallProduct& p) {
  constexpr int64_t kLinks = 48, kBlock = 4, kLanes = Vec<C>::kLanes;
  constexpr int64_t kWorthColumns = 16;  // rows: with fewer, storing columns takes longer than computing them
  const int64_t columns = p.rows < kWorthColumns ? p.columns : p.columns / kLanes * kLanes;
  for (int64_t n = 0; n < p.rows; n += kLinks) {
    const Range rows{n, smaller(p.rows, n + kLinks)};
    const bool fresh = n == 0 && !p.add;
    int64_t m = 0, k = columns;
    for (; m + kBlock <= p.depth; m += kBlock) outer_rows<C, kBlock>(p, m, columns, rows, fresh);
    for (; m < p.depth; ++m) outer_rows<C, 1>(p, m, columns, rows, fresh);
    for (; k + kBlock <= p.columns; k += kBlock) outer_column_block<C, kBlock>(p, k, rows, fresh);
    for (; k < p.columns; ++k) outer_column_block<C, 1>(p, k, rows, fresh);
  }
}

}  // namespace FASTRNN_NAMESPACE
