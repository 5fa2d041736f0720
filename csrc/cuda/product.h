// Recurrent product of one block: its part of the matrix, packed once into shared memory, times the operand of some
// batch rows. Matrix rows are along M of the tensor cores' tiles and batch rows along N, so that a small batch wastes
// little; the depth is divided among warps, whose partial sums are added in shared memory in a fixed order.
#pragma once

#include <math.h>

#include <type_traits>

#include "cuda/args.h"
#include "cuda/device.h"
#include "cuda/sizes.h"
#include "simd/compute.h"

namespace fastrnn::cuda {

constexpr int kPassColumns = kTileColumns * kColumnTiles;

// A warp's part of the packed matrix in shared memory
struct SharedMatrix {
  const char* packed;
  int rows;  // of the whole matrix
  int first_tile;
};

// Accumulators of a warp; n: column tiles
template <int n>
using Sums = float[kRowTiles][n][4];

// Tensor cores. The order of the depth within a block of 64 bytes is arbitrary as long as both factors agree: a thread
// loads 16 bytes in a row of the operand, for two instructions.
template <class T, class Kind>
struct TensorCores {
  using Storage = T;
  static constexpr bool kTensorCores = true;
  static constexpr int kBlock = 64 / static_cast<int>(sizeof(T));  // depth of a block
  // Rows of the operand in shared memory begin this many bytes after a multiple of 128: a quarter-warp reads two rows.
  static constexpr int kRowOffset = 64;

  static FASTRNN_DEVICE void operand(float x, T* p) {
    if constexpr (sizeof(T) == 4) {
      *p = round_tf32(x);
    } else {
      narrow(x, p);
    }
  }

  // Packs a matrix of `rows` rows: [block][half block][tile][lane][16 bytes], with 8 bytes for each lane of a last tile
  // of only 8 rows. `matrix(row, column)`: 16 bytes of a row starting at that column.
  template <class Matrix>
  static FASTRNN_DEVICE void pack(Block& block, char* to, int rows, int blocks, const Matrix& matrix) {
    const int lane = block.thread() % 32, warps = block.threads() / 32;
    const int row_bytes = kBlock / 2 * static_cast<int>(sizeof(T)), half_bytes = rows * row_bytes;
    for (int k = block.thread() / 32; k < blocks; k += warps) {
      const int column = k * kBlock + lane % 4 * (kBlock / 4);
      for (int first = 0; first < rows; first += kTileRows) {
        char* at = to + 2 * k * half_bytes + first * row_bytes;
        const Bits128 upper = rounded(matrix(first + lane / 4, column));
        if (first + 8 < rows) {
          const Bits128 lower = rounded(matrix(first + 8 + lane / 4, column));
          Bits128* lanes = reinterpret_cast<Bits128*>(at) + lane;
          *lanes = {upper.x, lower.x, upper.y, lower.y};
          lanes[half_bytes / 16] = {upper.z, lower.z, upper.w, lower.w};
        } else {
          Bits64* lanes = reinterpret_cast<Bits64*>(at) + lane;
          *lanes = {upper.x, upper.y};
          lanes[half_bytes / 8] = {upper.z, upper.w};
        }
      }
    }
  }
  static FASTRNN_DEVICE Bits128 rounded(const Bits128& bits) {
    if constexpr (sizeof(T) != 4) {
      return bits;
    } else {
      const auto one = [](uint32_t x) { return bit_cast<uint32_t>(round_tf32(bit_cast<float>(x))); };
      return {one(bits.x), one(bits.y), one(bits.z), one(bits.w)};
    }
  }

  // A thread's part of the operand: one block of the depth of n column tiles
  static constexpr int kLoads = 1;  // loads for each column tile
  template <int n>
  using Operand = Bits128[n];

  // `b`: the operand, rows `stride` bytes apart, read by `load`
  template <int tiles, class Load>
  static FASTRNN_DEVICE void fetch(Block& block, Operand<tiles>& right, const char* b, int stride, int k,
                                   const Load& load) {
    const int lane = block.thread() % 32;
    FASTRNN_UNROLL
    for (int n = 0; n < tiles; ++n) {
      right[n] = load(b + (n * kTileColumns + lane / 4) * stride + k * 64 + lane % 4 * 16);
    }
  }

  // One thread's factor of one instruction: half a block of the depth of the m-th row tile of a warp. Returns false
  // beyond the matrix.
  static FASTRNN_DEVICE bool factor(Block& block, const SharedMatrix& a, int k, int half, int m, Bits128& left) {
    const int lane = block.thread() % 32, row = (a.first_tile + m) * kTileRows;
    constexpr int row_bytes = kBlock / 2 * static_cast<int>(sizeof(T));
    if (row >= a.rows) return false;
    const char* tile = a.packed + ((k * 2 + half) * a.rows + row) * row_bytes;
    if (row + 8 < a.rows) {
      left = *reinterpret_cast<const Bits128*>(tile + lane * 16);
    } else {
      const Bits64 two = *reinterpret_cast<const Bits64*>(tile + lane * 8);
      left = {two.x, 0, two.y, 0};
    }
    return true;
  }

  // A warp's part of the matrix in registers: `blocks` blocks of the depth, from `begin` on, of `row_tiles` row tiles
  template <int blocks, int row_tiles>
  struct Held {
    Bits128 factors[blocks][2][row_tiles];
    int begin;

    static constexpr int kRegisters = blocks * 2 * row_tiles * 4;

    FASTRNN_DEVICE Held(Block& block, const SharedMatrix& a, int begin) : begin(begin) {
      FASTRNN_UNROLL
      for (int k = 0; k < blocks; ++k) {
        FASTRNN_UNROLL
        for (int half = 0; half < 2; ++half) {
          FASTRNN_UNROLL
          for (int m = 0; m < row_tiles; ++m) {
            if (!TensorCores::factor(block, a, begin + k, half, m, factors[k][half][m])) {
              factors[k][half][m] = {0, 0, 0, 0};
            }
          }
        }
      }
    }
  };
  template <int blocks, int row_tiles>
  static FASTRNN_DEVICE bool factor(Block&, const Held<blocks, row_tiles>& a, int k, int half, int m, Bits128& left) {
    if (m >= row_tiles) return false;
    left = a.factors[k - a.begin][half][m];
    return true;
  }

  // One block of the depth of all tiles in registers, for one column tile
  template <int blocks, int row_tiles>
  static FASTRNN_DEVICE void accumulate(Block& block, float (&sums)[row_tiles][4], const Held<blocks, row_tiles>& a,
                                        int k, const Bits128& right) {
    FASTRNN_UNROLL
    for (int half = 0; half < 2; ++half) {
      FASTRNN_UNROLL
      for (int m = 0; m < row_tiles; ++m) {
        multiply_add(block, Kind(), sums[m], a.factors[k][half][m], half == 0 ? right.x : right.z,
                     half == 0 ? right.y : right.w);
      }
    }
  }

  // One block of the depth. With two sets of sums each half of the block has its own.
  template <int tiles, int sets, class Matrix>
  static FASTRNN_DEVICE void accumulate(Block& block, Sums<tiles> (&sums)[sets], const Matrix& a, int k,
                                        const Operand<tiles>& right) {
    FASTRNN_UNROLL
    for (int half = 0; half < 2; ++half) {
      FASTRNN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        Bits128 left;
        if (!factor(block, a, k, half, m, left)) continue;
        FASTRNN_UNROLL
        for (int n = 0; n < tiles; ++n) {
          multiply_add(block, Kind(), sums[half % sets][m][n], left, half == 0 ? right[n].x : right[n].z,
                       half == 0 ? right[n].y : right[n].w);
        }
      }
    }
  }
};

// Exact float32, without tensor cores. The sums are distributed over the threads as with tensor cores.
struct PlainFloat {
  using Storage = float;
  static constexpr bool kTensorCores = false;
  static constexpr int kBlock = 4;
  static constexpr int kRowOffset = 16;  // a quarter-warp reads 16 bytes of every other row, four rows

  static FASTRNN_DEVICE void operand(float x, float* p) { *p = x; }

  // [block][row][4]
  template <class Matrix>
  static FASTRNN_DEVICE void pack(Block& block, char* to, int rows, int blocks, const Matrix& matrix) {
    const int warps = block.threads() / 32;
    for (int k = block.thread() / 32; k < blocks; k += warps) {
      for (int row = block.thread() % 32; row < rows; row += 32) {
        reinterpret_cast<Bits128*>(to)[k * rows + row] = matrix(row, k * kBlock);
      }
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
  static FASTRNN_DEVICE void fetch(Block& block, Operand<tiles>& right, const char* b, int stride, int k,
                                   const Load& load) {
    FASTRNN_UNROLL
    for (int n = 0; n < tiles; ++n) {
      const char* column = b + (n * kTileColumns + block.thread() % 4 * 2) * stride + k * 16;
      right[n][0] = load(column);
      right[n][1] = load(column + stride);
    }
  }

  template <int tiles>
  static FASTRNN_DEVICE void accumulate(Block& block, Sums<tiles> (&all)[1], const SharedMatrix& a, int k,
                                        const Operand<tiles>& operand) {
    const int lane = block.thread() % 32, rows = a.rows;
    const Bits128* packed = reinterpret_cast<const Bits128*>(a.packed) + k * rows;
    Sums<tiles>& sums = all[0];
    float left[kRowTiles][2][4];
    FASTRNN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = (a.first_tile + m) * kTileRows + lane / 4;
      // Sums past the end are not used; any valid row will do.
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

// Results of a pass in shared memory: [warps deep][columns][matrix rows + 4]; the four extra rows put a warp's stores
// on different banks. As many columns as the widest pass of a group.
struct Partials {
  float* memory;
  int rows, deep, columns;

  FASTRNN_FN int stride() const { return rows + 4; }
  FASTRNN_FN static int columns_of(int group_rows) {
    const int rounded = (group_rows + kTileColumns - 1) / kTileColumns * kTileColumns;
    return rounded < kPassColumns ? rounded : kPassColumns;
  }
  FASTRNN_FN static int64_t bytes(const Tiling& t) {
    return static_cast<int64_t>(t.warps_deep) * columns_of(t.rows) * (t.matrix_rows + 4) *
           static_cast<int64_t>(sizeof(float));
  }
  FASTRNN_DEVICE float* at(int part, int column) const { return memory + (part * columns + column) * stride(); }

  // The products of n rows of the matrix, from `row` on, with a column. Instantiated for each power of two of parts, so
  // that all their loads are in flight at once.
  template <int n, class V>
  FASTRNN_DEVICE void sums(int row, int column, V (&out)[n]) const {
    if (deep <= 1) return sum_parts<1>(row, column, out);
    if (deep <= 2) return sum_parts<2>(row, column, out);
    if (deep <= 4) return sum_parts<4>(row, column, out);
    sum_parts<kWarps>(row, column, out);
  }

 private:
  template <int count, int n, class V>
  FASTRNN_DEVICE void sum_parts(int row, int column, V (&out)[n]) const {
    V parts[count][n];
    FASTRNN_UNROLL
    for (int part = 0; part < count; ++part) {
      FASTRNN_UNROLL
      for (int g = 0; g < n; ++g) parts[part][g] = V::zero();
      if (part < deep) load(row, part, column, parts[part]);
    }
    FASTRNN_UNROLL
    for (int g = 0; g < n; ++g) {
      out[g] = parts[0][g];
      FASTRNN_UNROLL
      for (int part = 1; part < count; ++part) out[g] = out[g] + parts[part][g];
    }
  }
  template <int n, class V>
  FASTRNN_DEVICE void load(int row, int part, int column, V (&out)[n]) const {
    const float* from = at(part, column) + row;
    if constexpr (n == 4) {  // the four gates of a unit; row is a multiple of four
      const Bits128 bits = *reinterpret_cast<const Bits128*>(from);
      out[0] = bit_cast<float>(bits.x);
      out[1] = bit_cast<float>(bits.y);
      out[2] = bit_cast<float>(bits.z);
      out[3] = bit_cast<float>(bits.w);
    } else {
      FASTRNN_UNROLL
      for (int g = 0; g < n; ++g) out[g] = from[g];
    }
  }
};

// A warp's part of every product of a kernel: two row tiles, and some blocks of the depth. Computed once, because it
// needs divisions.
struct WarpPart {
  int rows;  // rows of the matrix
  int first_tile;
  int deep;  // its index among the warps that divide the depth
  int begin, end;

  FASTRNN_DEVICE WarpPart(Block& block, const Tiling& tiling, int depth_block)
      : rows(tiling.matrix_rows),
        first_tile(block.thread() / 32 % tiling.warps_across * kRowTiles),
        deep(block.thread() / 32 / tiling.warps_across) {
    const int blocks = static_cast<int>(tiling.depth) / depth_block;
    begin = deep < tiling.warps_deep ? blocks * deep / tiling.warps_deep : 0;
    end = deep < tiling.warps_deep ? blocks * (deep + 1) / tiling.warps_deep : 0;
  }
  // Surplus warps have no place in the partial sums.
  FASTRNN_DEVICE bool idle(const Partials& partials) const { return deep >= partials.deep; }
};

// Stores a warp's sums. `full`: the tiles of no warp reach beyond the matrix.
template <bool full, int tiles>
FASTRNN_DEVICE void store_sums(Block& block, const WarpPart& part, const Sums<tiles>& sums, const Partials& partials) {
  const int lane = block.thread() % 32, g = lane / 4, q = lane % 4;
  FASTRNN_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    FASTRNN_UNROLL
    for (int n = 0; n < tiles; ++n) {
      const int row = (part.first_tile + m) * kTileRows + g, column = n * kTileColumns + q * 2;
      if (full || row < part.rows) {
        partials.at(part.deep, column)[row] = sums[m][n][0];
        partials.at(part.deep, column + 1)[row] = sums[m][n][1];
      }
      if (full || row + 8 < part.rows) {
        partials.at(part.deep, column)[row + 8] = sums[m][n][2];
        partials.at(part.deep, column + 1)[row + 8] = sums[m][n][3];
      }
    }
  }
}

// Product of a pass of `tiles` column tiles: a warp loads several blocks of the operand before it uses the first, so
// that it does not wait for memory once per block.
template <class Format, int tiles, class Load>
FASTRNN_DEVICE void multiply_tiles(Block& block, const WarpPart& part, const char* a, const char* b, int stride,
                                   const Partials& partials, const Load& load) {
  constexpr int kAhead = Load::kInFlight > tiles * Format::kLoads ? Load::kInFlight / (tiles * Format::kLoads) : 1;
  const SharedMatrix matrix{a, part.rows, part.first_tile};
  Sums<tiles> sums[1] = {};
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int k = part.begin; k < part.end; k += kAhead) {
    typename Format::template Operand<tiles> right[kAhead];
    FASTRNN_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      if (k + j < part.end) Format::template fetch<tiles>(block, right[j], b, stride, k + j, load);
    }
    FASTRNN_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      if (k + j < part.end) Format::template accumulate<tiles>(block, sums, matrix, k + j, right[j]);
    }
  }
  store_sums<false>(block, part, sums[0], partials);
}

// Products of a kernel whose sizes are not known: the matrix stays in shared memory.
template <class Format, class Sizes, class Load, bool known = Sizes::kKnown>
struct Product {
  const WarpPart part;
  const char* matrix;

  FASTRNN_DEVICE Product(Block& block, const Tiling& tiling, const char* matrix)
      : part(block, tiling, Format::kBlock), matrix(matrix) {}

  // The product of one pass of columns into `partials`; must be followed by a sync.
  FASTRNN_DEVICE void multiply(Block& block, const char* b, int stride, int columns, const Partials& partials) const {
    if (part.idle(partials)) return;
    static_assert(kColumnTiles == 4);
    if (columns <= kTileColumns) return tiles<1>(block, b, stride, partials);
    if (columns <= 2 * kTileColumns) return tiles<2>(block, b, stride, partials);
    if (columns <= 3 * kTileColumns) return tiles<3>(block, b, stride, partials);
    tiles<4>(block, b, stride, partials);
  }

 private:
  template <int n>
  FASTRNN_DEVICE void tiles(Block& block, const char* b, int stride, const Partials& partials) const {
    multiply_tiles<Format, n>(block, part, matrix, b, stride, partials, Load());
  }
};

// Products of known sizes: no loop, and the matrix in registers if it fits
template <class Format, class Sizes, class Load>
struct Product<Format, Sizes, Load, true> {
  static constexpr int kTiles = Sizes::kRows / kTileColumns, kBlocks = Sizes::kBlocks;
  static constexpr int kUsedTiles = Sizes::kMatrixRows > kTileRows ? kRowTiles : 1;
  // Four independent sums hide an instruction's latency.
  static constexpr int kSets = kTiles * kUsedTiles >= 4 ? 1 : 2;
  static constexpr int kAhead = Load::kInFlight > kTiles ? Load::kInFlight / kTiles : 1;
  // Registers of a thread for the matrix: more of them and of loads in flight do not fit together.
  static constexpr int kMostHeld = Load::kInFlight > 4 ? 64 : 128;
  using Held = typename Format::template Held<kBlocks, kUsedTiles>;
  using Matrix = std::conditional_t<(Held::kRegisters <= kMostHeld), Held, SharedMatrix>;

  const WarpPart part;
  const Matrix matrix;

  FASTRNN_DEVICE Product(Block& block, const Tiling& tiling, const char* packed)
      : part(block, tiling, Format::kBlock), matrix(load(block, {packed, part.rows, part.first_tile}, part)) {}

  FASTRNN_DEVICE void multiply(Block& block, const char* b, int stride, int, const Partials& partials) const {
    if (Sizes::kAcross * Sizes::kDeep < kWarps && part.idle(partials)) return;
    Sums<kTiles> sums[kSets] = {};
    FASTRNN_UNROLL
    for (int k = 0; k < kBlocks; k += kAhead) {
      typename Format::template Operand<kTiles> right[kAhead];
      FASTRNN_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        if (k + j < kBlocks) {
          Format::template fetch<kTiles>(block, right[j], b, stride, part.begin + k + j, Load());
        }
      }
      FASTRNN_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        if (k + j < kBlocks) {
          Format::template accumulate<kTiles>(block, sums, matrix, part.begin + k + j, right[j]);
        }
      }
    }
    if constexpr (kSets == 2) add(sums[0], sums[1]);
    store_sums<Sizes::kMatrixRows % (kTileRows * kRowTiles) == 0>(block, part, sums[0], partials);
  }

 private:
  static FASTRNN_DEVICE Matrix load(Block& block, const SharedMatrix& packed, const WarpPart& part) {
    if constexpr (Held::kRegisters <= kMostHeld) {
      return Held(block, packed, part.begin);
    } else {
      return packed;
    }
  }
  static FASTRNN_DEVICE void add(Sums<kTiles>& to, const Sums<kTiles>& from) {
    FASTRNN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      FASTRNN_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        FASTRNN_UNROLL
        for (int i = 0; i < 4; ++i) to[m][n][i] += from[m][n][i];
      }
    }
  }
};

}  // namespace fastrnn::cuda
