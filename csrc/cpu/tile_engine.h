// Engine that multiplies bfloat16 parts, in AMX (the matrix unit) or on SIMD vectors; see engine.h.
#pragma once

#if defined(FASTRNN_TILES_ON_VECTORS)
#include "cpu/unit_vector.h"
#else
#include "cpu/unit_matrix.h"
#endif

namespace FASTRNN_NAMESPACE {

// Groups computed together: the smallest number that fills whole passes
constexpr int groups_of_a_pass(int blocks) { return blocks % 4 == 0 ? 1 : (blocks % 2 == 0 ? 2 : 4); }

// Columns are the blocks (gates) of the first 16 units, then those of the next; zeros after the last, as many as a pass
// that begins there reads, and at depths past the end.
template <int Parts>
struct TileWeights {
  using Element = uint16_t;
  uint16_t* data;
  int64_t depth, units;
  int blocks;  // NV

  int64_t groups() const { return divide_up(units, kTileLanes); }
  int64_t used() const { return groups() * blocks; }
  int64_t columns() const { return used() + (groups_of_a_pass(blocks) - 1) * blocks; }
  int64_t deep() const { return divide_up(depth, kTileDepth); }
  int64_t size() const { return columns() * deep() * Parts * kTileSize; }
  bool far() const { return size() * 2 > TileUnit::kNearBytes; }
  uint16_t* tile(int64_t column, int64_t k) const { return data + (column * deep() + k) * Parts * kTileSize; }
  TileColumns<Parts> as_operand() const { return {data, deep()}; }
  void clear_rest() const { memset(tile(used(), 0), 0, static_cast<size_t>(size() - (tile(used(), 0) - data)) * 2); }
};

template <class T, int Parts>
void pack_rows_as_lanes(const T* w, const TileWeights<Parts>& to, Range groups) {
  for (int64_t j = groups.begin; j < groups.end; ++j) {
    const int64_t first = j * kTileLanes, lanes = smaller(kTileLanes, to.units - first);
    for (int v = 0; v < to.blocks; ++v) {
      const T* rows = w + (v * to.units + first) * to.depth;
      for (int64_t k = 0; k < to.deep(); ++k) {
        const int64_t depth = k * kTileDepth;
        tile_of_rows<Parts, true>(rows + depth, to.depth, lanes, to.depth - depth, to.tile(j * to.blocks + v, k));
      }
    }
  }
  if (groups.end == to.groups()) to.clear_rest();
}

template <class T, int Parts>
void pack_columns_as_lanes(const T* w, const TileWeights<Parts>& to, Range groups) {
  for (int64_t j = groups.begin; j < groups.end; ++j) {
    const int64_t first = j * kTileLanes, lanes = smaller(kTileLanes, to.units - first);
    for (int64_t k = 0; k < to.deep(); ++k) {
      const int64_t depth = k * kTileDepth;
      tile_of_columns<Parts, true>(w + depth * to.units + first, to.units, lanes, to.depth - depth, to.tile(j, k));
    }
  }
  if (groups.end == to.groups()) to.clear_rest();
}

// Rows in parts: row r, part p, depth k at data[(r·Parts + p)·deep + k], with padding between rows, so that they do not
// all map to the same cache sets. Zeros at depths past the end.
template <int Parts>
struct PartRows {
  using Element = uint16_t;
  uint16_t* data = nullptr;
  int64_t depth = 0, deep = 0, stride = 0;

  PartRows() = default;
  explicit PartRows(int64_t d)
      : depth(d), deep(divide_up(d, kTileDepth) * kTileDepth), stride(Parts * deep + kTileDepth) {}
  int64_t size(int64_t rows) const { return rows * stride; }
  void prepare(Range rows) const {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      for (int p = 0; p < Parts; ++p) {
        for (int64_t k = depth; k < deep; ++k) data[i * stride + p * deep + k] = 0;
      }
    }
  }
  template <bool Full>
  FASTRNN_FN void store(Vec<float> x, int64_t row, int64_t k, Lanes<Full> lanes) const {
    store_parts<Parts>(x, data + row * stride + k, deep, lanes);
  }
  TileRows from(int64_t row) const { return {data + row * stride, stride, kTileDepth, deep}; }
};

// Rows [begin, begin + count) in blocks of one size, at most 16; the last block may overlap the previous one.
struct TileBlocks {
  int64_t begin, number, count, size;
  TileBlocks(int64_t b, int64_t n)
      : begin(b), number(n), count(divide_up(n, 16)), size(count > 0 ? divide_up(n, count) : 0) {}
  int64_t first(int64_t b) const { return begin + smaller(b * size, number - size); }
  Range own(int64_t b) const { return {begin + b * size, begin + smaller((b + 1) * size, number)}; }
};

// Counterpart of Sweep in product.h
template <int NV, int Parts>
struct TileSweep {
  static constexpr int kGroups = groups_of_a_pass(NV);
  static constexpr int kColumns = kGroups * NV;
  static constexpr int64_t kStride = kColumns * kTileLanes;

  const TileWeights<Parts>& weights;
  const float* bias;
  const PartRows<Parts>& x;
  Range groups;
  bool backwards;

  template <class Stage, class Given = NoProduct>
  void run(Range rows, int64_t live, const Stage& stage, const Given& given = {}) const {
    if (rows.begin >= rows.end) return;
    const TileBlocks blocks(rows.begin, larger(0, smaller(rows.end, live) - rows.begin));
    const int64_t number = divide_up(groups.end - groups.begin, kGroups);
    TileUnit unit;
    for (int64_t n = 0; n < number; ++n) {
      const int64_t first = groups.begin + (backwards ? number - 1 - n : n) * kGroups;
      const Range here{first, smaller(groups.end, first + kGroups)};
      multiply(unit, blocks, here, n + 1 < number, stage);
      without_operand({rows.begin + blocks.number, rows.end}, here, stage, given);
    }
  }

 private:
  const float* bias_of(int64_t column) const { return bias != nullptr ? bias + column * kTileLanes : nullptr; }

  // The `part`-th of `parts` parts of the columns after `column`, to be prefetched, for a product over the depth
  Fetch ahead(int64_t column, bool more, int64_t part, int64_t parts) const {
    if (!more || !weights.far()) return {};
    const int64_t lines = divide_up(kColumns * Parts * kTileSize * 2, 64 * parts);  // cache lines at each depth
    const int64_t next = larger(0, column + (backwards ? -kColumns : kColumns));
    return {reinterpret_cast<const char*>(weights.tile(next, 0)) + part * lines * weights.deep() * 64,
            static_cast<int>(lines)};
  }

  template <class Stage>
  void multiply(TileUnit& unit, const TileBlocks& blocks, Range here, bool more, const Stage& stage) const {
    alignas(64) float sums[2][16 * kStride];
    const TileColumns<Parts> w = weights.as_operand();
    const int64_t column = here.begin * NV;
    constexpr int kPasses = kColumns / kPass;
    const int64_t parts = divide_up(blocks.count, 2) * kPasses * 2;
    const auto at = [&](int c) { return TileSums{sums[0] + c * 16, sums[1] + c * 16, kStride, bias_of(column + c)}; };
    int64_t b = 0, part = 0;
    if (blocks.count > 1) unit.use(static_cast<int>(blocks.size), Shape::kPair);
    for (; b + 1 < blocks.count; b += 2) {
      const TileRows x0 = x.from(blocks.first(b)), x1 = x.from(blocks.first(b + 1));
      for (int c = 0; c < kColumns; c += 2) {
        unit.template pair<Parts>(x0, x1, w, column + c, {0, w.blocks}, at(c), ahead(column, more, part++, parts));
      }
      hand_over(blocks.own(b), blocks.first(b), here, sums[0], true, stage);
      hand_over(blocks.own(b + 1), blocks.first(b + 1), here, sums[1], true, stage);
    }
    if (b == blocks.count) return;
    unit.use(static_cast<int>(blocks.size), Shape::kSingle);
    for (int c = 0; c < kColumns; c += kPass) {
      unit.template single<Parts>(x.from(blocks.first(b)), w, column + c, at(c),
                                  ahead(column, more, part++, parts / 2));
    }
    hand_over(blocks.own(b), blocks.first(b), here, sums[0], true, stage);
  }

  // The rows of a block that no block before it had; the first of `sums` are those of row `first`.
  template <class Stage>
  [[gnu::noinline]] void hand_over(Range own, int64_t first, Range here, float* sums, bool operand,
                                   const Stage& stage) const {
    for (int64_t i = own.begin; i < own.end; ++i) {
      float* row = sums + (i - first) * kStride;
      for (int64_t j = here.begin; j < here.end; ++j, row += NV * kTileLanes) {
        if (operand && any_nan<NV>(row)) {
          for (int v = 0; v < NV; ++v) {
            mend<Parts>(x.from(i), weights.as_operand(), j * NV + v, bias_of(j * NV + v), row + v * kTileLanes);
          }
        }
        stage(i, j, row);
      }
    }
  }

  template <class Stage, class Given>
  void without_operand(Range rows, Range here, const Stage& stage, const Given& given) const {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      alignas(64) float sums[kStride] = {};
      for (int64_t j = here.begin; j < here.end; ++j) given(i, j, sums + (j - here.begin) * NV * kTileLanes);
      hand_over({i, i + 1}, i, here, sums, false, stage);
    }
  }
};

template <int Parts>
struct Tiles {
  static constexpr bool kReadsStates = false;
  static constexpr int kGroupsPast = 3;  // that a pass reads after the last one at most
  static constexpr int kBytes = 2 * Parts;
  static constexpr double kSpeed = TileUnit::kSpeed / (Parts == 1 ? 1 : 3);
  using Weights = TileWeights<Parts>;
  using Operand = PartRows<Parts>;

  template <int NV>
  static Weights weights(int64_t depth, int64_t units, int64_t) {
    return {nullptr, depth, units, NV};
  }
  template <int NV>
  static TileSweep<NV, Parts> sweep(const Weights& weights, const float* bias, const Operand& x, Range groups,
                                    bool backwards) {
    return {weights, bias, x, groups, backwards};
  }
};

}  // namespace FASTRNN_NAMESPACE
