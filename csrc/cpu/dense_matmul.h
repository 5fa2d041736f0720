// Large products of float32 or float64 matrices, with the tiles of the recurrence (product.h)
//
// The depth is divided into chunks, whose sums are accumulated in turn; within a chunk, into chains (product.h). The
// sum of an output therefore depends on its row of a, its column of b and the depth only: not on the size of the
// matrices, nor on the number of threads. For each chunk all of b is first packed in panels; then every thread takes
// pieces of the output: blocks of rows, for which a panel is read from the L2 cache, for all columns or a part of them.
#pragma once

#include "cpu/chunks.h"
#include "cpu/product.h"
#include "cpu/workspace.h"

namespace FASTRNN_NAMESPACE {

template <class C>
class DenseMatmul {
 public:
  explicit DenseMatmul(const LargeProduct& args)
      : args_(args),
        b_{nullptr, smaller(kChunk, args.depth), args.columns, 1, tile_width<1>(smaller(kPart, args.rows))},
        panels_(divide_up(b_.groups(), b_.width)),
        row_blocks_(divide_up(args.rows, kRows)),
        column_blocks_(row_blocks_ >= 2 * args.threads ? 1
                                                       : smaller(panels_, divide_up(2 * args.threads, row_blocks_))) {
    at_b_ = workspace_.add(b_.size(), sizeof(C));
    at_bias_ = workspace_.add(args.bias != nullptr ? b_.groups() * kLanes : 0, sizeof(C));
    at_a_ =
        workspace_.add(args.a_depth == 1 ? 0 : args.threads * divide_up(args.rows, row_blocks_) * kStride, sizeof(C));
  }

  int run() {
    if (!workspace_.allocate()) return -1;
    b_.data = workspace_.at<C>(at_b_);
    run_team(args_.threads, &DenseMatmul::body, this);
    return workspace_.intact() ? 0 : -2;
  }

 private:
  using V = Vec<C>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kPart = kMaxBlocks * kRowsOf<1>;  // rows per reading of a chain of a panel
  static constexpr int64_t kRows = 2 * kPart;                // rows of a block: with a panel they fit the L2 cache
  static constexpr int64_t kChunk = 8 * kChain;
  static constexpr int64_t kStride = kChunk + 64 / static_cast<int64_t>(sizeof(C));

  // A chunk of the depth
  struct Chunk {
    int64_t from, depth;
  };

  static void body(void* self, Member& member) { static_cast<DenseMatmul*>(self)->work(member); }

  void work(Member& member) {
    bool alone = member.size == 1;
    for (int64_t k = 0; k < args_.depth; k += kChunk) {
      const Chunk chunk{k, smaller(kChunk, args_.depth - k)};
      Panels<C> b = b_;
      b.depth = chunk.depth;
      const bool goes_on = chunks_.run(
          member, alone, panels_, row_blocks_ * column_blocks_, [&](int64_t panel) { pack(chunk, b, panel); },
          [&](int64_t piece) { multiply(chunk, b, piece, member.rank); });
      if (!goes_on) return;
    }
  }

  void pack(const Chunk& chunk, const Panels<C>& b, int64_t panel) const {
    const Range groups{panel * b.width, smaller((panel + 1) * b.width, b.groups())};
    const C* from = static_cast<const C*>(args_.b) + chunk.from * args_.b_depth;
    if (args_.b_column == 1) {
      pack_columns_as_lanes(from, args_.b_depth, b, groups);
    } else {
      pack_rows_as_lanes(from, args_.b_column, b, groups);
    }
    if (chunk.from == 0 && args_.bias != nullptr) {
      pack_bias(static_cast<const C*>(args_.bias), 1, args_.columns, workspace_.at<C>(at_bias_), groups);
    }
  }

  void multiply(const Chunk& chunk, const Panels<C>& b, int64_t piece, int rank) const {
    const int64_t block = piece / column_blocks_, column = piece % column_blocks_;
    const Range rows{args_.rows * block / row_blocks_, args_.rows * (block + 1) / row_blocks_};
    const Range panels{panels_ * column / column_blocks_, panels_ * (column + 1) / column_blocks_};
    const C* a = static_cast<const C*>(args_.a) + rows.begin * args_.a_row + chunk.from * args_.a_depth;
    int64_t stride = args_.a_row;
    if (args_.a_depth != 1) {
      C* packed = workspace_.at<C>(at_a_) + rank * divide_up(args_.rows, row_blocks_) * kStride;
      transpose_rows(a, rows.end - rows.begin, chunk.depth, packed);
      a = packed, stride = kStride;
    }
    for (int64_t p = panels.begin; p < panels.end; ++p) some_columns(chunk, b, p, rows, a, stride);
  }

  // to[i][k] = from[i + k·args_.a_depth]
  void transpose_rows(const C* from, int64_t rows, int64_t depth, C* to) const {
    V block[kLanes];
    for (int64_t k = 0; k < depth; k += kLanes) {
      const int deep = static_cast<int>(smaller(kLanes, depth - k));
      for (int64_t i = 0; i < rows; i += kLanes) {
        const int count = static_cast<int>(smaller(kLanes, rows - i));
        for (int d = 0; d < kLanes; ++d) {
          const C* row = from + (k + d) * args_.a_depth + i;
          block[d] = d >= deep ? V::zero() : (count == kLanes ? V::load(row) : load_some(row, count));
        }
        transpose(block);
        for (int r = 0; r < count; ++r) block[r].store(to + (i + r) * kStride + k);
      }
    }
  }

  // The columns of a panel for some rows; `a`: the first of these rows
  void some_columns(const Chunk& chunk, const Panels<C>& b, int64_t panel, Range rows, const C* a,
                    int64_t stride) const {
    const int64_t first = panel * b.width, width = smaller(b.width, b.groups() - first);
    const bool begins = chunk.from == 0 && !args_.add;
    const C* bias = begins && args_.bias != nullptr ? workspace_.at<C>(at_bias_) : nullptr;
    const auto stage = [&](int64_t i, int64_t group, const C* sum) __attribute__((always_inline)) {
      const int64_t column = group * kLanes;
      C* out = static_cast<C*>(args_.out) + (rows.begin + i) * args_.out_row + column;
      const V v = V::load(sum);
      if (column + kLanes <= args_.columns) {
        (begins ? v : V::load(out) + v).store(out);
      } else {
        const int lanes = static_cast<int>(args_.columns - column);
        store_some(begins ? v : load_some(out, lanes) + v, out, lanes);
      }
    };
    const int64_t count = rows.end - rows.begin;
    Sweep<1, C>{b, bias, a, stride, {first, first + width}, false}.run({0, count}, count, stage);
  }

  const LargeProduct& args_;
  Panels<C> b_;
  const int64_t panels_, row_blocks_, column_blocks_;
  Workspace workspace_;
  size_t at_b_, at_bias_, at_a_;
  Chunks chunks_;
};

template <class C>
int dense_product(const LargeProduct& args) {
  return DenseMatmul<C>(args).run();
}

}  // namespace FASTRNN_NAMESPACE
