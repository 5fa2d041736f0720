// The product of a step: rows of a state times packed weights, into a small tile that the element-wise stage reads at
// once.
//
// Every output is summed in one order over the depth, in chains of kChain multiply-adds that are then added up (short
// chains halve the rounding error of long sums), whatever the shape of the tile it is computed in: hence the same bits
// for any batch, any number of threads and any way of sharing the work.
//
// A chain's weights for one tile (4 gates of 16 units: 32 KiB) fit the L1 cache. So several blocks of rows go
// through one chain before the next one is read.
#pragma once

#include "cpu/pack.h"

namespace FASTRNN_NAMESPACE {

constexpr int64_t kChain = 128;
constexpr int kMaxBlocks = 8;  // of rows, for which a chain of weights is read from the L1 cache

// Vectors of a tile whose sums are in registers at the same time. With 16 of these pairs, for which six rows leave
// room; three numbers for two loads are as many as a processor reads while it multiplies.
constexpr int at_once(int vectors) { return kVectorRegisters == 16 && vectors % 2 == 0 ? 2 : vectors; }

// Return true if the sums of `rows` rows × `vectors` vectors stay in registers, beside the weights' vectors and a
// number of the operand. With 32 registers that number is multiplied from memory; a single row's weights always are.
constexpr bool fits_registers(int rows, int vectors) {
  if (kVectorRegisters == 32) return rows * vectors <= 24;
  return rows == 1 ? vectors <= 8 : (rows + 1) * at_once(vectors) + 1 <= kVectorRegisters;
}

// Rows of a tile of NV blocks: as many as the registers hold; of a single block beside others (groups_of).
template <int NV>
constexpr int rows_of() {
  constexpr int kVectors = NV == 1 ? (kVectorRegisters == 32 ? 4 : 2) : NV;
  int rows = 1;
  while (rows < 8 && fits_registers(rows + 1, kVectors)) ++rows;
  return rows;
}
template <int NV>
constexpr int kRowsOf = rows_of<NV>();

// Groups of units computed together: more for few rows, so that enough independent chains hide the latency of the
// multiply-add; a power of two.
template <int NV, int MR>
constexpr int groups_of() {
  int groups = 1;
  while (MR * groups * 2 * NV <= 24 && fits_registers(MR, groups * 2 * NV) && groups * 2 * NV <= 8) groups *= 2;
  return groups;
}

// Prefetch into the L2 cache during a product: a number of lines at each depth. Weights that do not fit there would
// otherwise be read at the speed of the L3 cache or memory in every step, while the arithmetic waits.
struct Ahead {
  const char* from = nullptr;
  int lines = 0;
};

// One chain of a tile's products: weights from `panel` on, `step` apart from one depth to the next.
template <class C>
struct Chain {
  const C* panel;
  int64_t step;
  const C* bias;  // of the first chain, or null
  const C* x;
  int64_t x_stride;
  int64_t depth;
  bool first;
  Ahead ahead;
};

// tile[g][r][v] = bias[g][v] + Σ_k x[r][k] · panel[k][g][v], or without bias added to what is there.
template <class C, int NV, int NT, int MR>
void product_tile(const Chain<C>& chain, C* tile) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  constexpr int kVectors = NT * NV, kAtOnce = MR > 1 ? at_once(kVectors) : kVectors;
  FASTRNN_UNROLL
  for (int first = 0; first < kVectors; first += kAtOnce) {
    V sum[MR][kAtOnce];
    FASTRNN_UNROLL
    for (int v = 0; v < kAtOnce; ++v) {
      const V start = chain.bias != nullptr ? V::load(chain.bias + (first + v) * kLanes) : V::zero();
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) sum[r][v] = start;
    }
    const C* panel = chain.panel + first * kLanes;
    const C* x = chain.x;
    const int64_t step = chain.step, x_stride = chain.x_stride;
    const char* ahead = chain.ahead.from;
    const int lines = first == 0 ? chain.ahead.lines : 0;
    for (int64_t k = 0; k < chain.depth; ++k, panel += step) {
      for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      V w[kAtOnce];
      FASTRNN_UNROLL
      for (int v = 0; v < kAtOnce; ++v) w[v] = V::load(panel + v * kLanes);
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) {
        const V a(x[r * x_stride + k]);
        FASTRNN_UNROLL
        for (int v = 0; v < kAtOnce; ++v) sum[r][v] = fma(a, w[v], sum[r][v]);
      }
    }
    FASTRNN_UNROLL
    for (int v = 0; v < kAtOnce; ++v) {
      const int g = (first + v) / NV, of_group = (first + v) % NV;
      FASTRNN_UNROLL
      for (int r = 0; r < MR; ++r) {
        C* to = tile + ((g * MR + r) * NV + of_group) * kLanes;
        (chain.first ? sum[r][v] : V::load(to) + sum[r][v]).store(to);
      }
    }
  }
}

// The same with MR and NT chosen at run time; NT must not exceed groups_of<NV, rows>().
template <class C, int NV, int MR>
FASTRNN_FN void product_groups(int groups, const Chain<C>& chain, C* tile) {
  constexpr int kMost = groups_of<NV, MR>();
  if constexpr (kMost >= 8) {
    if (groups == 8) return product_tile<C, NV, 8, MR>(chain, tile);
  }
  if constexpr (kMost >= 4) {
    if (groups == 4) return product_tile<C, NV, 4, MR>(chain, tile);
  }
  if constexpr (kMost >= 2) {
    if (groups == 2) return product_tile<C, NV, 2, MR>(chain, tile);
  }
  product_tile<C, NV, 1, MR>(chain, tile);
}

template <class C, int NV, int MR = kRowsOf<NV>>
FASTRNN_FN void product(int rows, int groups, const Chain<C>& chain, C* tile) {
  if constexpr (MR > 1) {
    if (rows < MR) return product<C, NV, MR - 1>(rows, groups, chain, tile);
  }
  product_groups<C, NV, MR>(groups, chain, tile);
}

template <int NV, int MR = kRowsOf<NV>>
FASTRNN_FN int most_groups(int rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return most_groups<NV, MR - 1>(rows);
  }
  return groups_of<NV, MR>();
}

// Groups of a tile where there are so many rows: what Panels::width should be.
template <int NV>
int tile_width(int64_t rows) {
  const int64_t blocks = divide_up(larger(rows, 1), kRowsOf<NV>);
  return most_groups<NV>(static_cast<int>(divide_up(larger(rows, 1), blocks)));
}

// Rows [begin, end) in blocks of nearly equal size, none larger than a tile: the first `longer` have one row more.
template <int NV>
struct Blocks {
  int64_t begin, end;
  int count, size, longer;
  Blocks(int64_t b, int64_t e) : begin(b), end(e) {
    const auto rows = static_cast<int>(e - b);
    count = (rows + kRowsOf<NV> - 1) / kRowsOf<NV>;
    size = count > 0 ? rows / count : 0;
    longer = rows - size * count;
  }
  int64_t first(int k) const { return begin + k * size + (k < longer ? k : longer); }
  int rows(int k) const { return size + (k < longer ? 1 : 0); }
};

constexpr int larger_of(int a, int b) { return a > b ? a : b; }

// The product of rows without an operand, where it is zero.
struct NoProduct {
  template <class C>
  void operator()(int64_t, int64_t, C*) const {}
};

// For each group of units in `groups` and each row in [rows.begin, rows.end): the product, then
//   stage(row, group, NV vectors of the sum).
// Rows from `live` on have no operand: given(row, group, NV vectors of zeros) writes their product. `backwards` goes
// through the groups from the last to the first: if every other step does so, it begins with the weights that the step
// before it used last, which are still near.
template <int NV, class C>
struct Sweep {
  static constexpr int kLanes = Vec<C>::kLanes;
  static constexpr int kTile = larger_of(24, kRowsOf<NV>* NV) * kLanes;

  const Panels<C>& weights;
  const C* bias;
  const C* x;
  int64_t x_stride;
  Range groups;
  bool backwards;

  // The chains from `depth` on of the next tile, of which a share is fetched while one of `parts` blocks is computed.
  Ahead ahead(int64_t j, int width, int64_t k, int64_t depth, int64_t part, int64_t parts) const {
    const int64_t next = backwards ? j - 1 : j + width;
    if (parts < 2 || !weights.far() || next < groups.begin || next >= groups.end) return {};
    const int64_t first = next - next % weights.width, step = weights.step(first);
    const int64_t lines = divide_up(step * static_cast<int64_t>(sizeof(C)), 64 * parts);  // at each depth
    const auto from = reinterpret_cast<const char*>(weights.group(first) + k * step) + part * lines * depth * 64;
    return {from, static_cast<int>(lines)};
  }

  // Rows with and without an operand share this function and thereby one copy of the element-wise stage, which takes
  // most of a unit's compile time.
  template <class Stage, class Given>
  void tile_column(int64_t j, int width, const Blocks<NV>& rows, bool operand, const Stage& stage,
                   const Given& given) const {
    alignas(64) C tiles[kMaxBlocks][kTile];
    const C* panel = weights.group(j);
    const int64_t step = weights.step(j), depth = weights.depth;
    const bool single = depth <= kChain;
    for (int64_t k = operand ? 0 : (depth - 1) / kChain * kChain; k < depth; k += kChain) {
      const int64_t here = smaller(kChain, depth - k);
      for (int b = 0; b < rows.count; ++b) {
        const int64_t row = rows.first(b);
        const int n = rows.rows(b);
        C* tile = tiles[single ? 0 : b];
        const C* start = bias != nullptr && k == 0 ? bias + j * NV * kLanes : nullptr;
        if (operand) {
          product<C, NV>(n, width,
                         {panel + k * step, step, start, x + row * x_stride + k, x_stride, here, k == 0,
                          ahead(j, width, k, here, b, rows.count)},
                         tile);
        } else {
          memset(tile, 0, static_cast<size_t>(width * n * NV * kLanes) * sizeof(C));
          for (int g = 0; g < width; ++g) {
            for (int r = 0; r < n; ++r) given(row + r, j + g, tile + (g * n + r) * NV * kLanes);
          }
        }
        if (k + here < depth) continue;
        for (int g = 0; g < width; ++g) {
          for (int r = 0; r < n; ++r) stage(row + r, j + g, tile + (g * n + r) * NV * kLanes);
        }
      }
    }
  }

  // The tiles of a group of rows; a tile does not cross the border of what lies side by side.
  template <class Stage, class Given>
  void some_rows(Range rows, int64_t live, const Stage& stage, const Given& given) const {
    const Blocks<NV> blocks(rows.begin, larger(rows.begin, smaller(rows.end, live))), rest(blocks.end, rows.end);
    const Blocks<NV>* const both[2] = {&blocks, &rest};
    const int widest =
        static_cast<int>(smaller(most_groups<NV>(blocks.count == 0 ? 1 : blocks.rows(0)), weights.width));
    for (int64_t done = 0; done < groups.end - groups.begin;) {
      const int64_t left = groups.end - groups.begin - done;
      int width = widest;
      int64_t j = 0;
      for (;; width /= 2) {
        j = backwards ? groups.end - done - width : groups.begin + done;
        if (width == 1 || (width <= left && j % weights.width + width <= weights.width)) break;
      }
      for (int b = 0; b < 2; ++b) {
        if (both[b]->count > 0) tile_column(j, width, *both[b], b == 0, stage, given);
      }
      done += width;
    }
  }

  template <class Stage, class Given = NoProduct>
  void run(Range rows, int64_t live, const Stage& stage, const Given& given = {}) const {
    constexpr int64_t kMost = kMaxBlocks * kRowsOf<NV>;
    const int64_t parts = divide_up(larger(rows.end - rows.begin, 0), kMost);
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t count = rows.end - rows.begin;
      some_rows({rows.begin + count * p / parts, rows.begin + count * (p + 1) / parts}, live, stage, given);
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
