// Products of parts on vectors (AVX512-BF16: two products an element and instruction); tiles.h says what a unit is.
#pragma once

#include "cpu/tiles.h"

namespace FASTRNN_NAMESPACE {

class TileUnit {
 public:
  static constexpr int64_t kNear = 8, kNearBytes = 3 << 18;  // these processors have 1 MiB a core
  static constexpr double kSpeed = 2;

  void use(int rows, Shape) { rows_ = rows; }

  template <int Parts>
  void pair(const TileRows& x0, const TileRows& x1, const TileColumns<Parts>& w, int64_t column, Range depth,
            const TileSums& sums, Fetch ahead) const {
    static_assert(Parts <= 2);
    const uint16_t* b = w.tile(column, depth.begin);
    const int64_t next = w.blocks * Parts * kTileSize, tiles = depth.end - depth.begin;
    const Piece piece{b, next, tiles, sums.stride, sums.bias, depth.begin == 0};
    columns<Parts, 2>(x0, piece, sums.first, ahead);
    columns<Parts, 2>(x1, piece, sums.second, {});
  }

  template <int Parts>
  void single(const TileRows& x, const TileColumns<Parts>& w, int64_t column, const TileSums& sums, Fetch ahead) const {
    const Piece piece{w.tile(column, 0), w.blocks * Parts * kTileSize, w.blocks, sums.stride, sums.bias, true};
    columns<Parts, kPass>(x, piece, sums.first, ahead);
  }

 private:
  // A piece of the depth of some columns.
  struct Piece {
    const uint16_t* weights;
    int64_t next, tiles;  // from one column to the next; along the depth
    int64_t stride;
    const float* bias;
    bool first;
  };

  // 16 sums in registers: four rows × four columns, else eight × two. Sixteen rows × one column would need an address
  // register for each row, more than there are.
  template <int Parts, int Columns>
  void columns(const TileRows& x, const Piece& piece, float* out, Fetch ahead) const {
    if constexpr (Columns >= 4) {
      if (rows_ <= 4) return some_rows<Parts, 4, 4>(x, rows_, piece, out, ahead);
    }
    const int half = rows_ > 8 ? (rows_ + 1) / 2 : rows_;
    Piece two = piece;
    for (int c = 0; c < Columns; c += 2) {
      some_rows<Parts, 2, 8>(x, half, two, out + c * kTileLanes, ahead);
      if (half < rows_) {
        some_rows<Parts, 2, 8>(x.from(half), rows_ - half, two, out + half * piece.stride + c * kTileLanes, {});
      }
      ahead = {};
      two.weights += 2 * piece.next;
      if (two.bias != nullptr) two.bias += 2 * kTileLanes;
    }
  }

  template <int Parts, int Columns, int Rows>
  FASTRNN_FN static void some_rows(const TileRows& x, int rows, const Piece& piece, float* out, Fetch ahead) {
    if constexpr (Rows > 1) {
      if (rows < Rows) return some_rows<Parts, Columns, Rows - 1>(x, rows, piece, out, ahead);
    }
    multiply<Parts, Columns, Rows>(x, piece, out, ahead);
  }

  // The product of one part of the rows with one of the weights, at one tile of the depth.
  template <int Columns, int Rows>
  FASTRNN_FN static void tile(const uint16_t* a, int64_t row, const uint16_t* b, int64_t next,
                              __m512 (&sum)[Rows][Columns]) {
    for (int d = 0; d < kTileDepth; d += 2) {
      __m512i w[Columns];
      FASTRNN_UNROLL
      for (int c = 0; c < Columns; ++c) w[c] = _mm512_loadu_si512(b + c * next + d / 2 * kTileDepth);
      FASTRNN_UNROLL
      for (int r = 0; r < Rows; ++r) {
        int32_t two = 0;
        memcpy(&two, a + r * row + d, sizeof(two));
        const auto x = (__m512bh)_mm512_set1_epi32(two);
        FASTRNN_UNROLL
        for (int c = 0; c < Columns; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], x, (__m512bh)w[c]);
      }
    }
  }

  template <int Parts, int Columns, int Rows>
  __attribute__((noinline)) static void multiply(const TileRows& x, const Piece& piece, float* out, Fetch ahead) {
    __m512 sum[Rows][Columns];
    FASTRNN_UNROLL
    for (int r = 0; r < Rows; ++r) {
      FASTRNN_UNROLL
      for (int c = 0; c < Columns; ++c) {
        const float* from = piece.first ? piece.bias : out + r * piece.stride;
        sum[r][c] = from != nullptr ? _mm512_loadu_ps(from + c * kTileLanes) : _mm512_setzero_ps();
      }
    }
    const uint16_t *a = x.data, *b = piece.weights;
    for (int64_t k = 0; k < piece.tiles; ++k, a += x.block, b += Parts * kTileSize) {
      ahead.some();
      if constexpr (Parts > 1) tile<Columns, Rows>(a + x.part, x.row, b, piece.next, sum);
      tile<Columns, Rows>(a, x.row, b, piece.next, sum);
      if constexpr (Parts > 1) tile<Columns, Rows>(a, x.row, b + kTileSize, piece.next, sum);
    }
    FASTRNN_UNROLL
    for (int r = 0; r < Rows; ++r) {
      FASTRNN_UNROLL
      for (int c = 0; c < Columns; ++c) _mm512_storeu_ps(out + r * piece.stride + c * kTileLanes, sum[r][c]);
    }
  }

  int rows_ = 0;
};

}  // namespace FASTRNN_NAMESPACE
