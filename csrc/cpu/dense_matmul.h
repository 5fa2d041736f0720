// Large products with the tiles of the recurrence (product.h), computed in float32 or float64; 16-bit matrices are
// widened to float32 while they are packed
//
// The depth is divided into chunks, whose sums are accumulated in turn; within a chunk, into chains (product.h). The
// sum of an output therefore depends on its row of a, its column of b and the depth only: not on the size of the
// matrices, nor on the number of threads. For each chunk all of b is first packed in panels; then every thread takes
// pieces of the output: blocks of rows, for which a panel is read from the L2 cache, for all columns or a part of them.
// Sums of several chunks are kept in the output, or, since a 16-bit one would round each, in an array of their own.
#pragma once

#include "cpu/chunks.h"
#include "cpu/product.h"
#include "cpu/workspace.h"

namespace FASTRNN_NAMESPACE {

template <class T>
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
    at_a_ = workspace_.add(kInPlace && args.a_depth == 1 ? 0 : args.threads * most_rows() * kStride, sizeof(C));
    at_sums_ = workspace_.add(kInPlace || args.depth <= kChunk ? 0 : args.rows * args.columns, sizeof(C));
  }

  int run() {
    if (!workspace_.allocate()) return -1;
    b_.data = workspace_.at<C>(at_b_);
    run_team(args_.threads, &DenseMatmul::body, this);
    return workspace_.intact() ? 0 : -2;
  }

 private:
  using C = Compute<T>;
  using V = Vec<C>;
  static constexpr int kLanes = V::kLanes;
  static constexpr bool kInPlace = sizeof(T) == sizeof(C);   // rows of a are read, and sums kept, where they are
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
    const T* from = static_cast<const T*>(args_.b) + chunk.from * args_.b_depth;
    if (args_.b_column == 1) {
      pack_columns_as_lanes(from, args_.b_depth, b, groups);
    } else {
      pack_rows_as_lanes(from, args_.b_column, b, groups);
    }
    if (chunk.from == 0 && args_.bias != nullptr) {
      pack_bias(static_cast<const T*>(args_.bias), 1, args_.columns, workspace_.at<C>(at_bias_), groups);
    }
  }

  void multiply(const Chunk& chunk, const Panels<C>& b, int64_t piece, int rank) const {
    const int64_t block = piece / column_blocks_, column = piece % column_blocks_;
    const Range rows{args_.rows * block / row_blocks_, args_.rows * (block + 1) / row_blocks_};
    const Range panels{panels_ * column / column_blocks_, panels_ * (column + 1) / column_blocks_};
    const T* from = static_cast<const T*>(args_.a) + rows.begin * args_.a_row + chunk.from * args_.a_depth;
    C* packed = workspace_.at<C>(at_a_) + rank * most_rows() * kStride;
    const C* a = packed;
    int64_t stride = kStride;
    if (args_.a_depth != 1) {
      transpose_rows(from, rows.end - rows.begin, chunk.depth, packed);
    } else if constexpr (kInPlace) {
      a = from, stride = args_.a_row;
    } else {
      for (int64_t i = 0; i < rows.end - rows.begin; ++i) {
        widen_row(from + i * args_.a_row, chunk.depth, packed + i * kStride);
      }
    }
    for (int64_t p = panels.begin; p < panels.end; ++p) some_columns(chunk, b, p, rows, a, stride);
  }

  int64_t most_rows() const { return divide_up(args_.rows, row_blocks_); }

  static void widen_row(const T* from, int64_t depth, C* to) {
    for (int64_t k = 0; k < depth; k += kLanes) load_first(from + k, depth - k).store(to + k);
  }

  // to[i][k] = from[i + k·args_.a_depth]
  void transpose_rows(const T* from, int64_t rows, int64_t depth, C* to) const {
    V block[kLanes];
    for (int64_t k = 0; k < depth; k += kLanes) {
      const int deep = static_cast<int>(smaller(kLanes, depth - k));
      for (int64_t i = 0; i < rows; i += kLanes) {
        const int count = static_cast<int>(smaller(kLanes, rows - i));
        for (int d = 0; d < kLanes; ++d) {
          const T* row = from + (k + d) * args_.a_depth + i;
          block[d] = d >= deep ? V::zero() : load_first(row, count);
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
    const bool begins = chunk.from == 0, ends = kInPlace || chunk.from + chunk.depth == args_.depth;
    const C* bias = begins && !args_.add && args_.bias != nullptr ? workspace_.at<C>(at_bias_) : nullptr;
    const auto stage = [&](int64_t i, int64_t group, const C* sum) __attribute__((always_inline)) {
      const int64_t column = group * kLanes, row = rows.begin + i;
      const int64_t lanes = args_.columns - column;
      T* out = static_cast<T*>(args_.out) + row * args_.out_row + column;
      C* sums = sums_of(row, column);
      V v = V::load(sum);
      if (!begins) v = v + load_first(sums, lanes);
      if (begins && args_.add) v = v + load_first(out, lanes);
      ends ? store_first(v, out, lanes) : store_first(v, sums, lanes);
    };
    const int64_t count = rows.end - rows.begin;
    Sweep<1, C>{b, bias, a, stride, {first, first + width}, false}.run({0, count}, count, stage);
  }

  // The sums of the chunks so far, of a row from a column on
  C* sums_of(int64_t row, int64_t column) const {
    if constexpr (kInPlace) return static_cast<T*>(args_.out) + row * args_.out_row + column;
    return workspace_.at<C>(at_sums_) + row * args_.columns + column;
  }

  const LargeProduct& args_;
  Panels<Compute<T>> b_;
  const int64_t panels_, row_blocks_, column_blocks_;
  Workspace workspace_;
  size_t at_b_, at_bias_, at_a_, at_sums_;
  Chunks chunks_;
};

template <class T>
int dense_product(const LargeProduct& args) {
  return DenseMatmul<T>(args).run();
}

}  // namespace FASTRNN_NAMESPACE
