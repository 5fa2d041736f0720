// The recurrent product of one block: its part of the matrix, packed once into shared memory, times the operand of some
// rows of the batch. Matrix rows lie along M of the tensor cores' tiles and rows of the batch along N, so that a small
// batch wastes little; the depth is shared by warps, whose partial sums meet in shared memory in a fixed order.
#pragma once

#include <math.h>

#include "cuda/args.h"
#include "cuda/device.h"
#include "simd/compute.h"

namespace fastrnn::cuda {

constexpr int kPassColumns = kTileColumns * kColumnTiles;

// Of a warp; n: column tiles.
template <int n>
using Sums = float[kRowTiles][n][4];

// Tensor cores. The order of the depth inside a block of 64 bytes is free as long as both factors agree: a thread takes
// 16 bytes in a row of the operand, which are two instructions' worth.
template <class T, class Kind>
struct TensorCores {
  using Storage = T;
  static constexpr bool kTensorCores = true;
  static constexpr int kBlock = 64 / static_cast<int>(sizeof(T));  // of the depth

  static FASTRNN_DEVICE void operand(float x, T* p) {
    if constexpr (sizeof(T) == 4) {
      *p = round_tf32(x);
    } else {
      narrow(x, p);
    }
  }

  // Packs `matrix` (rows, depth), given by a function of (row, column): [block][half block][tile][lane][16 bytes], the
  // last tile's lanes 8 bytes if it has but 8 rows.
  template <class Matrix>
  static FASTRNN_DEVICE void pack(Block& block, char* to, int rows, int blocks, const Matrix& matrix) {
    constexpr int kEach = kBlock / 16;  // numbers in a register
    const int64_t row_bytes = kBlock / 2 * static_cast<int64_t>(sizeof(T));
    const int64_t numbers = static_cast<int64_t>(rows) * blocks * kBlock;
    for (int64_t n = block.thread(); n < numbers; n += block.threads()) {
      const int row = static_cast<int>(n % rows);
      const int64_t column = n / rows;
      const int in = static_cast<int>(column % kBlock), q = in / (kBlock / 4), rest = in % (kBlock / 4);
      const int half = rest / (kBlock / 8), pair = rest % (kBlock / 8) / kEach, low = rest % kEach;
      const int tile = row / kTileRows, lane = row % 8 * 4 + q;
      const bool partial = tile * kTileRows + 8 >= rows;
      const int reg = pair * (partial ? 1 : 2) + (row % kTileRows) / 8;
      char* at = to + (column / kBlock * 2 + half) * rows * row_bytes + tile * kTileRows * row_bytes +
                 lane * (partial ? 8 : 16) + reg * 4;
      operand(matrix(row, column), reinterpret_cast<T*>(at) + low);
    }
  }

  // A thread's part of the operand, one block of the depth of n column tiles.
  static constexpr int kLoads = 1;  // for each column tile
  template <int n>
  using Operand = Bits128[n];

  // `b`: the operand, rows `stride` bytes apart, read by `load`.
  template <int tiles, class Load>
  static FASTRNN_DEVICE void fetch(Block& block, Operand<tiles>& right, const char* b, int64_t stride, int64_t k,
                                   const Load& load) {
    const int lane = block.thread() % 32;
    FASTRNN_UNROLL
    for (int n = 0; n < tiles; ++n) {
      right[n] = load(b + (n * kTileColumns + lane / 4) * stride + k * 64 + lane % 4 * 16);
    }
  }

  // One block of the depth. `a`: as packed.
  template <int tiles>
  static FASTRNN_DEVICE void accumulate(Block& block, Sums<tiles>& sums, const char* a, int rows, int first_tile,
                                        int64_t k, const Operand<tiles>& right) {
    const int lane = block.thread() % 32;
    const int64_t row_bytes = kBlock / 2 * static_cast<int64_t>(sizeof(T));
    FASTRNN_UNROLL
    for (int half = 0; half < 2; ++half) {
      FASTRNN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        const int row = (first_tile + m) * kTileRows;
        if (row >= rows) continue;
        const char* tile = a + (k * 2 + half) * rows * row_bytes + row * row_bytes;
        Bits128 left;
        if (row + 8 < rows) {
          left = *reinterpret_cast<const Bits128*>(tile + lane * 16);
        } else {
          const uint32_t* two = reinterpret_cast<const uint32_t*>(tile + lane * 8);
          left = {two[0], 0, two[1], 0};
        }
        FASTRNN_UNROLL
        for (int n = 0; n < tiles; ++n) {
          multiply_add(block, Kind(), sums[m][n], left, half == 0 ? right[n].x : right[n].z,
                       half == 0 ? right[n].y : right[n].w);
        }
      }
    }
  }
};

// float32, exact: no tensor core takes it. The sums lie over the threads as theirs do.
struct PlainFloat {
  using Storage = float;
  static constexpr bool kTensorCores = false;
  static constexpr int kBlock = 4;

  static FASTRNN_DEVICE void operand(float x, float* p) { *p = x; }

  // [block][row][4]
  template <class Matrix>
  static FASTRNN_DEVICE void pack(Block& block, char* to, int rows, int blocks, const Matrix& matrix) {
    const int64_t numbers = static_cast<int64_t>(rows) * blocks * kBlock;
    for (int64_t n = block.thread(); n < numbers; n += block.threads()) {
      const int row = static_cast<int>(n % rows);
      const int64_t column = n / rows;
      reinterpret_cast<float*>(to)[(column / kBlock * rows + row) * kBlock + column % kBlock] = matrix(row, column);
    }
  }

  static FASTRNN_DEVICE void floats(const Bits128& bits, float (&x)[4]) {
    x[0] = bit_cast<float>(bits.x);
    x[1] = bit_cast<float>(bits.y);
    x[2] = bit_cast<float>(bits.z);
    x[3] = bit_cast<float>(bits.w);
  }

  static constexpr int kLoads = 2;
  template <int n>
  using Operand = Bits128[n][2];

  template <int tiles, class Load>
  static FASTRNN_DEVICE void fetch(Block& block, Operand<tiles>& right, const char* b, int64_t stride, int64_t k,
                                   const Load& load) {
    FASTRNN_UNROLL
    for (int n = 0; n < tiles; ++n) {
      const char* column = b + (n * kTileColumns + block.thread() % 4 * 2) * stride + k * 16;
      right[n][0] = load(column);
      right[n][1] = load(column + stride);
    }
  }

  template <int tiles>
  static FASTRNN_DEVICE void accumulate(Block& block, Sums<tiles>& sums, const char* a, int rows, int first_tile,
                                        int64_t k, const Operand<tiles>& operand) {
    const int lane = block.thread() % 32;
    const Bits128* packed = reinterpret_cast<const Bits128*>(a) + k * rows;
    float left[kRowTiles][2][4];
    FASTRNN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = (first_tile + m) * kTileRows + lane / 4;
      // Past the end the sums are not used; any row that there is will do.
      floats(packed[row < rows ? row : lane / 4], left[m][0]);
      floats(packed[row + 8 < rows ? row + 8 : lane / 4], left[m][1]);
    }
    FASTRNN_UNROLL
    for (int n = 0; n < tiles; ++n) {
      float right[2][4];
      floats(operand[n][0], right[0]);
      floats(operand[n][1], right[1]);
      FASTRNN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        FASTRNN_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[m][n][0] = ::fmaf(left[m][0][i], right[0][i], sums[m][n][0]);
          sums[m][n][1] = ::fmaf(left[m][0][i], right[1][i], sums[m][n][1]);
          sums[m][n][2] = ::fmaf(left[m][1][i], right[0][i], sums[m][n][2]);
          sums[m][n][3] = ::fmaf(left[m][1][i], right[1][i], sums[m][n][3]);
        }
      }
    }
  }
};

// What a pass leaves in shared memory: [warps deep][columns][matrix rows + 4]; the four keep a warp's stores on
// different banks. As many columns as the widest pass of a group has.
struct Partials {
  float* memory;
  int rows, deep, columns;

  FASTRNN_FN int64_t stride() const { return rows + 4; }
  FASTRNN_FN static int columns_of(int group_rows) {
    const int rounded = (group_rows + kTileColumns - 1) / kTileColumns * kTileColumns;
    return rounded < kPassColumns ? rounded : kPassColumns;
  }
  FASTRNN_FN static int64_t bytes(const Tiling& t) {
    return static_cast<int64_t>(t.warps_deep) * columns_of(t.rows) * (t.matrix_rows + 4) *
           static_cast<int64_t>(sizeof(float));
  }
  FASTRNN_DEVICE float* at(int part, int column) const { return memory + (part * columns + column) * stride(); }
  FASTRNN_DEVICE float sum(int row, int column) const {
    float total = at(0, column)[row];
    for (int part = 1; part < deep; ++part) total += at(part, column)[row];
    return total;
  }
};

// Of a pass that is `tiles` column tiles wide: a warp asks for several blocks' operand before it uses the first, or
// it would wait for memory once for each.
template <class Format, int tiles, class Load>
FASTRNN_DEVICE void multiply_tiles(Block& block, const Tiling& tiling, int across, int deep, const char* a,
                                   const char* b, int64_t stride, const Partials& partials, const Load& load) {
  constexpr int kAhead = Load::kInFlight > tiles * Format::kLoads ? Load::kInFlight / (tiles * Format::kLoads) : 1;
  const int rows = tiling.matrix_rows, first_tile = across * kRowTiles;
  const int64_t blocks = tiling.depth / Format::kBlock, end = blocks * (deep + 1) / tiling.warps_deep;
  Sums<tiles> sums = {};
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int64_t k = blocks * deep / tiling.warps_deep; k < end; k += kAhead) {
    typename Format::template Operand<tiles> right[kAhead];
    FASTRNN_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      if (k + j < end) Format::template fetch<tiles>(block, right[j], b, stride, k + j, load);
    }
    FASTRNN_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      if (k + j < end) Format::template accumulate<tiles>(block, sums, a, rows, first_tile, k + j, right[j]);
    }
  }
  const int lane = block.thread() % 32, g = lane / 4, q = lane % 4;
  FASTRNN_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    FASTRNN_UNROLL
    for (int n = 0; n < tiles; ++n) {
      const int row = (first_tile + m) * kTileRows + g, column = n * kTileColumns + q * 2;
      if (row < rows) {
        partials.at(deep, column)[row] = sums[m][n][0];
        partials.at(deep, column + 1)[row] = sums[m][n][1];
      }
      if (row + 8 < rows) {
        partials.at(deep, column)[row + 8] = sums[m][n][2];
        partials.at(deep, column + 1)[row + 8] = sums[m][n][3];
      }
    }
  }
}

// The product of one pass of columns into `partials`; to be followed by a sync.
template <class Format, class Load>
FASTRNN_DEVICE void multiply(Block& block, const Tiling& tiling, const char* a, const char* b, int64_t stride,
                             int columns, const Partials& partials, const Load& load) {
  const int warp = block.thread() / 32, across = warp % tiling.warps_across, deep = warp / tiling.warps_across;
  if (deep >= tiling.warps_deep) return;
  static_assert(kColumnTiles == 4);
  switch ((columns + kTileColumns - 1) / kTileColumns) {
    case 1:
      return multiply_tiles<Format, 1>(block, tiling, across, deep, a, b, stride, partials, load);
    case 2:
      return multiply_tiles<Format, 2>(block, tiling, across, deep, a, b, stride, partials, load);
    case 3:
      return multiply_tiles<Format, 3>(block, tiling, across, deep, a, b, stride, partials, load);
    default:
      return multiply_tiles<Format, 4>(block, tiling, across, deep, a, b, stride, partials, load);
  }
}

}  // namespace fastrnn::cuda
