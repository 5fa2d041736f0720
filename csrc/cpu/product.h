// The product of a step: rows of a state times packed weights, into a small tile that the element-wise stage reads at
// once.
//
// Every output is summed in one order over the depth, in chains of kChain multiply-adds that are then added up (short
// chains halve the rounding error of long sums), whatever the shape of the tile it is computed in: hence the same bits
// for any batch, any number of threads and any way of sharing the work.
#pragma once

#include "cpu/pack.h"

namespace FASTRNN_NAMESPACE {

constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;
constexpr int kMaxTile = 32;  // vectors in a tile, at most
constexpr int64_t kChain = 256;

// Rows of a tile of NV blocks: as many as the registers hold.
template <int NV>
constexpr int kRowsOf =
    NV == 1 ? kAccumulators / 4 : (kAccumulators / NV > 8 ? 8 : (kAccumulators / NV < 1 ? 1 : kAccumulators / NV));

// Groups of units computed together: more for few rows, so that enough independent chains hide the latency of the
// multiply-add; a power of two.
template <int NV, int MR>
constexpr int groups_of() {
  int groups = 1;
  while (groups * 2 * NV * MR <= kAccumulators && groups * 2 * NV <= 8) groups *= 2;
  return groups;
}

// tile[g][r][v] = bias[g][v] + Σ_k x[r][k] · panel[g][k][v]
template <class C, int NV, int NT, int MR>
void product_tile(const C* panel, int64_t panel_stride, const C* bias, const C* x, int64_t x_stride, int64_t depth,
                  Ahead ahead, C* tile) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  int64_t k = 0;
  do {
    V sum[NT][MR][NV];
    FASTRNN_UNROLL
    for (int g = 0; g < NT; ++g) {
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const V start = bias != nullptr && k == 0 ? V::load(bias + (g * NV + v) * kLanes) : V::zero();
        FASTRNN_UNROLL
        for (int r = 0; r < MR; ++r) sum[g][r][v] = start;
      }
    }
    const bool first = k == 0;
    for (const int64_t end = smaller(k + kChain, depth); k < end; ++k) {
      for (int line = 0; line < ahead.lines; ++line)
        __builtin_prefetch(ahead.from + (k * ahead.lines + line) * 64, 0, 2);
      V w[NT][NV];
      FASTRNN_UNROLL
      for (int g = 0; g < NT; ++g) {
        FASTRNN_UNROLL
        for (int v = 0; v < NV; ++v) w[g][v] = V::load(panel + g * panel_stride + (k * NV + v) * kLanes);
      }
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) {
        const V a(x[r * x_stride + k]);
        FASTRNN_UNROLL
        for (int g = 0; g < NT; ++g) {
          FASTRNN_UNROLL
          for (int v = 0; v < NV; ++v) sum[g][r][v] = fma(a, w[g][v], sum[g][r][v]);
        }
      }
    }
    FASTRNN_UNROLL
    for (int g = 0; g < NT; ++g) {
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) {
        FASTRNN_UNROLL
        for (int v = 0; v < NV; ++v) {
          C* to = tile + ((g * MR + r) * NV + v) * kLanes;
          (first ? sum[g][r][v] : V::load(to) + sum[g][r][v]).store(to);
        }
      }
    }
  } while (k < depth);
}

// The same with MR and NT chosen at run time; NT must not exceed groups_of<NV, rows>().
template <class C, int NV, int MR>
FASTRNN_FN void product_groups(int groups, const C* panel, int64_t panel_stride, const C* bias, const C* x,
                               int64_t x_stride, int64_t depth, Ahead ahead, C* tile) {
  constexpr int kMost = groups_of<NV, MR>();
  if constexpr (kMost >= 8) {
    if (groups == 8) return product_tile<C, NV, 8, MR>(panel, panel_stride, bias, x, x_stride, depth, ahead, tile);
  }
  if constexpr (kMost >= 4) {
    if (groups == 4) return product_tile<C, NV, 4, MR>(panel, panel_stride, bias, x, x_stride, depth, ahead, tile);
  }
  if constexpr (kMost >= 2) {
    if (groups == 2) return product_tile<C, NV, 2, MR>(panel, panel_stride, bias, x, x_stride, depth, ahead, tile);
  }
  product_tile<C, NV, 1, MR>(panel, panel_stride, bias, x, x_stride, depth, ahead, tile);
}

template <class C, int NV, int MR = kRowsOf<NV>>
FASTRNN_FN int most_groups(int rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return most_groups<C, NV, MR - 1>(rows);
  }
  return groups_of<NV, MR>();
}

template <class C, int NV, int MR = kRowsOf<NV>>
FASTRNN_FN void product(int rows, int groups, const C* panel, int64_t panel_stride, const C* bias, const C* x,
                        int64_t x_stride, int64_t depth, Ahead ahead, C* tile) {
  if constexpr (MR > 1) {
    if (rows < MR) {
      return product<C, NV, MR - 1>(rows, groups, panel, panel_stride, bias, x, x_stride, depth, ahead, tile);
    }
  }
  product_groups<C, NV, MR>(groups, panel, panel_stride, bias, x, x_stride, depth, ahead, tile);
}

// For each group of units in `groups` and each row in [rows.begin, rows.end): the product, then
//   stage(row, group, NV vectors of the sum).
// Rows from `live` on have no operand (their product is zero). Groups are outermost: a panel is read from the nearest
// cache for all rows after the first block of them.
template <int NV, class C, class Stage>
void sweep(const Panels<C>& weights, const C* bias, const C* x, int64_t x_stride, Range rows, int64_t live,
           Range groups, const Stage& stage) {
  constexpr int kLanes = Vec<C>::kLanes;
  const int64_t count = rows.end - rows.begin;
  if (count <= 0) return;
  const int64_t blocks = divide_up(count, kRowsOf<NV>);
  alignas(64) C tile[kMaxTile * kLanes];
  int width = most_groups<C, NV>(static_cast<int>(divide_up(count, blocks)));
  for (int64_t j = groups.begin; j < groups.end; j += width) {
    while (width > groups.end - j) width /= 2;
    int64_t row = rows.begin;
    for (int64_t block = 0; block < blocks; ++block) {
      const int n = static_cast<int>(divide_up(rows.end - row, blocks - block));
      const int with_operand = static_cast<int>(larger(0, smaller(n, live - row)));
      if (with_operand > 0) {
        product<C, NV>(with_operand, width, weights.group(j), weights.stride(),
                       bias != nullptr ? bias + j * NV * kLanes : nullptr, x + row * x_stride, x_stride, weights.depth,
                       weights.ahead(j + width, width, block, blocks), tile);
      }
      for (int g = 0; g < width; ++g) {
        for (int r = 0; r < with_operand; ++r) stage(row + r, j + g, tile + (g * with_operand + r) * NV * kLanes);
      }
      if (with_operand < n) {
        alignas(64) C nothing[NV * kLanes];
        for (int g = 0; g < width; ++g) {
          for (int r = with_operand; r < n; ++r) {
            for (int v = 0; v < NV * kLanes; ++v) nothing[v] = C(0);
            stage(row + r, j + g, nothing);
          }
        }
      }
      row += n;
    }
  }
}

}  // namespace FASTRNN_NAMESPACE
