// Large products by parts in bfloat16, of matrices in float32 or a 16-bit dtype
//
// Blocking: the depth is divided into chunks, each a separate chain, accumulated in float32. For each chunk all of b is
// first packed in tiles; then every thread takes blocks of a's rows, packs them so that they stay in its L2 cache, and
// streams b's tiles past them. Sums of several chunks are kept in the output, or, since a 16-bit one would round each,
// in an array of their own; to need it rarely, chunks of 16-bit matrices are longer.
#pragma once

#include "cpu/chunks.h"
#include "cpu/product.h"
#include "cpu/tile_engine.h"

namespace FASTRNN_NAMESPACE {

constexpr int64_t kChunk = 512;
constexpr int64_t kLongChunk = 2048;  // of 16-bit matrices
constexpr int64_t kBlock = 1 << 17;   // numbers in a block of a: 256 KiB per part in tiles
constexpr int64_t kGroup = 128;       // rows at a time: their sums stay in the L1 cache
constexpr int64_t kPair = 32;         // rows and columns of two tiles

template <int kParts, class T>
class PartsMatmul {
 public:
  explicit PartsMatmul(const LargeProduct& a)
      : args_(a),
        a_(static_cast<const T*>(a.a)),
        b_(static_cast<const T*>(a.b)),
        out_(static_cast<T*>(a.out)),
        chunk_(kSumsInOutput ? kChunk : larger(kChunk, smaller(kLongChunk, a.depth))),
        row_pairs_(divide_up(a.rows, kPair)),
        blocks_(smaller(row_pairs_, a.threads * divide_up(a.rows, a.threads * (kBlock / chunk_ / kPair * kPair)))),
        column_pairs_(divide_up(a.columns, kPair)) {
    const int64_t deep = divide_up(smaller(chunk_, a.depth), kTileDepth);
    a_size_ = divide_up(row_pairs_, blocks_) * 2 * deep * kParts * kTileSize;
    at_b_ = workspace_.add(column_pairs_ * 2 * deep * kParts * kTileSize, sizeof(uint16_t));
    at_a_ = workspace_.add(a.threads * a_size_, sizeof(uint16_t));
    at_sums_ = workspace_.add(kSumsInOutput || a.depth <= chunk_ ? 0 : a.rows * a.columns, sizeof(float));
  }

  int run() {
    if (!workspace_.allocate()) return -1;
    run_team(args_.threads, &PartsMatmul::body, this);
    return workspace_.intact() ? 0 : -2;
  }

 private:
  // A chunk of the depth
  struct Chunk {
    int64_t from, depth, deep;
    bool first, last;
  };
  static constexpr bool kSumsInOutput = sizeof(T) == sizeof(float);

  static void body(void* self, Member& member) { static_cast<PartsMatmul*>(self)->work(member); }

  void work(Member& member) {
    bool alone = member.size == 1;
    uint16_t* a = workspace_.at<uint16_t>(at_a_) + member.rank * a_size_;
    for (int64_t k = 0; k < args_.depth; k += chunk_) {
      const int64_t depth = smaller(chunk_, args_.depth - k);
      const Chunk chunk{k, depth, divide_up(depth, kTileDepth), k == 0, k + depth == args_.depth};
      const bool goes_on = chunks_.run(
          member, alone, column_pairs_, blocks_, [&](int64_t pair) { pack_columns(chunk, pair); },
          [&](int64_t b) { pack_and_multiply(chunk, block(b), a); });
      if (!goes_on) return;
    }
  }

  void pack_and_multiply(const Chunk& chunk, Range rows, uint16_t* a) const {
    for (int64_t from = rows.begin; from < rows.end; from += kGroup) {
      pack_rows(chunk, {from, smaller(from + kGroup, rows.end)},
                a + (from - rows.begin) * chunk.deep * kTileDepth * kParts);
    }
    multiply(chunk, rows, a);
  }

  // The same number of blocks for each thread, with sizes that differ by at most a pair of tiles: no thread waits for a
  // last block.
  Range block(int64_t b) const {
    const auto border = [&](int64_t k) { return smaller(row_pairs_ * k / blocks_ * kPair, args_.rows); };
    return {border(b), border(b + 1)};
  }

  void pack_columns(const Chunk& chunk, int64_t pair) const {
    uint16_t* to = workspace_.at<uint16_t>(at_b_) + pair * 2 * chunk.deep * kParts * kTileSize;
    for (int64_t c = pair * 2; c < pair * 2 + 2; ++c) {
      const int64_t column = c * kTileLanes, lanes = larger(0, args_.columns - column);
      for (int64_t k = 0; k < chunk.depth; k += kTileDepth, to += kParts * kTileSize) {
        const T* from = b_ + (lanes > 0 ? column * args_.b_column : 0) + (chunk.from + k) * args_.b_depth;
        if (args_.b_column == 1) {
          tile_of_columns<kParts, true>(from, args_.b_depth, lanes, chunk.depth - k, to);
        } else {
          tile_of_rows<kParts, true>(from, args_.b_column, lanes, chunk.depth - k, to);
        }
      }
    }
  }

  // In groups of TileUnit::kNear tiles along the depth, within which rows are consecutive: the order of reading
  void pack_rows(const Chunk& chunk, Range rows, uint16_t* a) const {
    const int64_t tiles = divide_up(rows.end - rows.begin, kPair) * 2;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = rows.begin + t * kTileLanes, lanes = larger(0, rows.end - row);
      for (int64_t k = 0; k < chunk.depth; k += kTileDepth) {
        uint16_t* to = at_row(chunk, a, tiles, t, k / kTileDepth);
        const T* from = a_ + (lanes > 0 ? row * args_.a_row : 0) + (chunk.from + k) * args_.a_depth;
        if (args_.a_row == 1) {
          tile_of_columns<kParts, false>(from, args_.a_depth, lanes, chunk.depth - k, to);
        } else {
          tile_of_rows<kParts, false>(from, args_.a_row, lanes, chunk.depth - k, to);
        }
      }
    }
  }

  // The start of tile t of the rows at depth 32·k
  static uint16_t* at_row(const Chunk& chunk, uint16_t* a, int64_t tiles, int64_t t, int64_t k) {
    const int64_t first = k / TileUnit::kNear * TileUnit::kNear, near = smaller(TileUnit::kNear, chunk.deep - first);
    return a + (first * tiles + t * near + (k - first)) * kParts * kTileSize;
  }

  // All columns of a block of rows
  void multiply(const Chunk& chunk, Range rows, uint16_t* a) const {
    TileUnit unit;
    unit.use(kTileLanes, Shape::kPair);
    for (int64_t c = 0; c < column_pairs_; ++c) {
      for (int64_t from = rows.begin; from < rows.end; from += kGroup) {
        const Range group{from, smaller(from + kGroup, rows.end)};
        multiply(unit, chunk, c, rows, group, a + (from - rows.begin) * chunk.deep * kTileDepth * kParts);
      }
    }
  }

  // The c-th pair of columns for a group of the rows
  void multiply(const TileUnit& unit, const Chunk& chunk, int64_t c, Range all, Range rows, uint16_t* a) const {
    alignas(64) float sums[kGroup * kPair];
    const TileColumns<kParts> b{workspace_.at<uint16_t>(at_b_), chunk.deep};
    const int64_t row_pairs = divide_up(rows.end - rows.begin, kPair), calls = divide_up(all.end - all.begin, kPair);
    const auto rows_from = [&](int64_t t, int64_t k) {
      return TileRows{at_row(chunk, a, row_pairs * 2, t, k), kTileDepth, kParts * kTileSize, kTileSize};
    };
    const int64_t lines = c + 1 < column_pairs_ ? divide_up(2 * kParts * kTileSize * 2, 64 * calls) : 0;
    for (int64_t k = 0; k < chunk.deep; k += TileUnit::kNear) {
      const Range depth{k, smaller(k + TileUnit::kNear, chunk.deep)};
      for (int64_t r = 0; r < row_pairs; ++r) {
        const int64_t share = (((rows.begin - all.begin) / kPair + r) * chunk.deep + k) * lines;
        const Fetch ahead{reinterpret_cast<const char*>(b.tile(c * 2 + 2, 0)) + share * 64, static_cast<int>(lines)};
        fetch_output(rows, r * kPair + k * kPair / chunk.deep, r * kPair + depth.end * kPair / chunk.deep, c);
        float* out = sums + r * kPair * kPair;
        unit.template pair<kParts>(rows_from(2 * r, k), rows_from(2 * r + 1, k), b, c * 2, depth,
                                   {out, out + kTileLanes * kPair, kPair, nullptr}, ahead);
      }
    }
    hand_over(chunk, c, rows, sums);
  }

  // Prefetches for writing the output of the c-th pair of columns at some of the rows: they are far apart, so the
  // hardware does not prefetch them.
  void fetch_output(Range rows, int64_t from, int64_t to, int64_t c) const {
    const int64_t end = smaller(rows.begin + to, rows.end);
    for (int64_t i = rows.begin + from; i < end; ++i) {
      const T* out = out_ + i * args_.out_row + c * kPair;
      __builtin_prefetch(out, 0, 2);
      __builtin_prefetch(out + kTileLanes, 0, 2);
    }
  }

  // As in tiles.h, from the operands themselves
  void mend(const Chunk& chunk, int64_t i, int64_t column, int64_t lanes, float* sums) const {
    for (int64_t j = 0; j < lanes; ++j) {
      if (sums[j] == sums[j]) continue;
      float sum = 0;
      for (int64_t k = chunk.from; k < chunk.from + chunk.depth; ++k) {
        sum += widen(a_[i * args_.a_row + k * args_.a_depth]) *
               widen(b_[k * args_.b_depth + (column + j) * args_.b_column]);
      }
      sums[j] = sum;
    }
  }

  // Adds the sums of these rows and the c-th pair of columns to the output.
  void hand_over(const Chunk& chunk, int64_t c, Range rows, float* sums) const {
    for (int64_t i = rows.begin; i < rows.end; ++i, sums += kPair) {
      for (int half = 0; half < 2; ++half) {
        const int64_t column = (c * 2 + half) * kTileLanes, lanes = smaller(kTileLanes, args_.columns - column);
        if (lanes <= 0) break;
        float* sum = sums + half * kTileLanes;
        const __m512 found = _mm512_loadu_ps(sum);
        if (_mm512_cmp_ps_mask(found, found, _CMP_UNORD_Q) != 0) mend(chunk, i, column, lanes, sum);
        Vec<float> total(_mm512_loadu_ps(sum));
        T* out = out_ + i * args_.out_row + column;
        if (chunk.first) {
          if (args_.add) total = total + load_or_zero(out, lanes);
          if (args_.bias != nullptr) total = total + load_or_zero(static_cast<const T*>(args_.bias) + column, lanes);
        } else {
          total = total + load_or_zero(sums_of(i, column), lanes);
        }
        kSumsInOutput || chunk.last ? store_first(total, out, lanes) : store_first(total, sums_of(i, column), lanes);
      }
    }
  }

  // The sums of the chunks so far, of a row from a column on
  float* sums_of(int64_t row, int64_t column) const {
    if constexpr (kSumsInOutput) return out_ + row * args_.out_row + column;
    return workspace_.at<float>(at_sums_) + row * args_.columns + column;
  }

  const LargeProduct& args_;
  const T *a_, *b_;
  T* out_;
  const int64_t chunk_, row_pairs_, blocks_, column_pairs_;
  int64_t a_size_;
  Workspace workspace_;
  size_t at_b_, at_a_, at_sums_;
  Chunks chunks_;
};

template <int kParts, class T>
int product_in_parts(const LargeProduct& args) {
  return PartsMatmul<kParts, T>(args).run();
}

}  // namespace FASTRNN_NAMESPACE
