// Sizes of a persistent kernel's blocks: read from the tiling, or of one tiling, known to the compiler. With known
// sizes addresses within a step are constants, a thread has one unit of one row, whose states, biases, parameters and
// length it holds in registers, and the matrix is in registers too where it fits.
#pragma once

#include "cuda/args.h"

namespace fastrnn::cuda {

FASTRNN_FN constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The division of a block's product among warps
FASTRNN_FN constexpr int warps_across(int matrix_rows) {
  return static_cast<int>(round_up(matrix_rows, kTileRows * kRowTiles) / (kTileRows * kRowTiles));
}
FASTRNN_FN constexpr int warps_deep(int across) { return across < kWarps ? kWarps / across : 1; }

// Sizes that a kernel was compiled for
struct CompiledTiling {
  int units, rows, hidden, matrix_rows, depth;
};

// A block's units, its rows and the largest hidden size; zeros: any. `across`, `deep`: the division among warps
template <int units, int rows, int hidden>
struct Sizes {
  static constexpr int kUnits = units, kRows = rows, kHidden = hidden;
  static constexpr bool kKnown = units > 0;
  static_assert(units * rows <= kThreads && rows <= kTileColumns * kColumnTiles && rows % kTileColumns == 0);
  // Blocks send whole tiles: those of one gate must not reach into the next.
  static_assert(units % kGranule == 0 && hidden % (units > 0 ? units : 1) == 0);
};
using AnySizes = Sizes<0, 0, 0>;

// The sizes for which kernels with tensor cores are compiled: those that cuda/plan.cpp chooses on an H100 for up to 8
// rows of the batch in a cluster and 16 in the grid. The emulator has small ones too, for its tests.
template <class... Each>
struct SizesList {};
#if defined(FASTRNN_CUDA_EMULATED)
using GridSizes = SizesList<Sizes<8, 16, 48>, Sizes<8, 16, 1024>>;
#else
using GridSizes = SizesList<Sizes<8, 16, 1024>>;
#endif
using ClusterSizes = SizesList<Sizes<16, 8, 128>, Sizes<16, 8, 256>, Sizes<32, 8, 512>>;
using WideClusterSizes = SizesList<Sizes<16, 8, 128>, Sizes<16, 8, 256>>;  // of numbers of 32 bits

// Tiling of one kernel with these sizes. matrix_gates: rows of the matrix for each unit; depth_gates: numbers of the
// operand for each unit
template <class Sizes, class Format, int matrix_gates, int depth_gates>
struct SizesOf {
  static constexpr bool kKnown = Sizes::kKnown;
  static constexpr int kUnits = Sizes::kUnits, kRows = Sizes::kRows, kHidden = Sizes::kHidden;
  static constexpr int kMatrixRows = static_cast<int>(round_up(matrix_gates * Sizes::kUnits, 8));
  static constexpr int kAcross = kKnown ? warps_across(kMatrixRows) : 1, kDeep = warps_deep(kAcross);
  static constexpr int kDepth = static_cast<int>(round_up(depth_gates * Sizes::kHidden, Format::kBlock* kDeep));
  static constexpr int kBlocks = kDepth / Format::kBlock / kDeep;  // of the depth, for each warp
  static constexpr CompiledTiling kTiling = {kUnits, kRows, kHidden, kMatrixRows, kDepth};

  static FASTRNN_FN bool match(const Tiling& t) {
    return t.compiled == kHidden && t.units == kUnits && t.rows == kRows && t.matrix_rows == kMatrixRows &&
           t.depth == kDepth && t.warps_across == kAcross && t.warps_deep == kDeep;
  }
  // `t`, with its sizes as constants if they are known
  static FASTRNN_FN Tiling tiling(Tiling t) {
    if constexpr (kKnown) {
      t.units = kUnits;
      t.rows = kRows;
      t.matrix_rows = kMatrixRows;
      t.depth = kDepth;
      t.warps_across = kAcross;
      t.warps_deep = kDeep;
    }
    return t;
  }
};

}  // namespace fastrnn::cuda
