// Products of parts on the matrix unit of x86-64 (AMX); tiles.h says what a unit is.
#pragma once

#include "cpu/tiles.h"

namespace FASTRNN_NAMESPACE {

// Registers: 0 to 3 the sums, 4 and 5 (of a single block also 6) rows of the operand, 7 (of a pair 6 and 7) weights.
class TileUnit {
 public:
  static constexpr int64_t kNear = 2, kNearBytes = 3 << 19;  // these processors have 2 MiB a core or more
  static constexpr double kSpeed = 24;

  TileUnit() = default;
  ~TileUnit() { _tile_release(); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  void use(int rows, Shape shape) {
    if (rows == rows_ && shape == shape_) return;
    rows_ = rows, shape_ = shape;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.bytes[t] = 64;
      config.rows[t] = static_cast<uint8_t>(t < 6 || (t == 6 && shape == Shape::kSingle) ? rows : 16);
    }
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }

  template <int Parts>
  void pair(const TileRows& x0, const TileRows& x1, const TileColumns<Parts>& w, int64_t column, Range depth,
            const TileSums& sums, Fetch ahead) const {
    static_assert(Parts <= 2);
    const uint16_t *a0 = x0.data, *a1 = x1.data;
    const uint16_t *b0 = w.tile(column, depth.begin), *b1 = w.tile(column + 1, depth.begin);
    const int64_t row = x0.row * 2, part = x0.part, stride = sums.stride * 4;
    begin_pair(depth.begin == 0, sums);
#define FASTRNN_ROWS(p)                 \
  _tile_loadd(4, a0 + (p) * part, row); \
  _tile_loadd(5, a1 + (p) * part, row);
#define FASTRNN_COLUMNS(p)                  \
  _tile_loadd(6, b0 + (p) * kTileSize, 64); \
  _tile_loadd(7, b1 + (p) * kTileSize, 64);
#define FASTRNN_MULTIPLY   \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7);
    for (int64_t k = depth.begin; k < depth.end; ++k) {
      ahead.some();
      FASTRNN_COLUMNS(0)
      if constexpr (Parts > 1) {
        FASTRNN_ROWS(1) FASTRNN_MULTIPLY
      }
      FASTRNN_ROWS(0) FASTRNN_MULTIPLY if constexpr (Parts > 1){FASTRNN_COLUMNS(1) FASTRNN_MULTIPLY} a0 += x0.block;
      a1 += x0.block;
      b0 += Parts * kTileSize;
      b1 += Parts * kTileSize;
    }
#undef FASTRNN_ROWS
#undef FASTRNN_COLUMNS
#undef FASTRNN_MULTIPLY
    _tile_stored(0, sums.first, stride);
    _tile_stored(1, sums.first + 16, stride);
    _tile_stored(2, sums.second, stride);
    _tile_stored(3, sums.second + 16, stride);
    memory_is_written();
  }

  // Each of the weights' tiles is read once.
  template <int Parts>
  void single(const TileRows& x, const TileColumns<Parts>& w, int64_t column, const TileSums& sums, Fetch ahead) const {
    const uint16_t *a = x.data, *b = w.tile(column, 0);
    const int64_t row = x.row * 2, next = w.blocks * Parts * kTileSize;
    begin_single(sums.bias);
#define FASTRNN_MULTIPLY(c)                         \
  _tile_loadd(7, b + (c) * next, 64);               \
  if constexpr (Parts > 1) _tile_dpbf16ps(c, 5, 7); \
  _tile_dpbf16ps(c, 4, 7);                          \
  if constexpr (Parts > 1) {                        \
    _tile_loadd(6, b + (c) * next + kTileSize, 64); \
    _tile_dpbf16ps(c, 4, 6);                        \
  }
    for (int64_t k = 0; k < w.blocks; ++k) {
      ahead.some();
      _tile_loadd(4, a, row);
      if constexpr (Parts > 1) _tile_loadd(5, a + x.part, row);
      FASTRNN_MULTIPLY(0) FASTRNN_MULTIPLY(1) FASTRNN_MULTIPLY(2) FASTRNN_MULTIPLY(3) a += x.block;
      b += Parts * kTileSize;
    }
#undef FASTRNN_MULTIPLY
    const int64_t stride = sums.stride * 4;
    _tile_stored(0, sums.first, stride);
    _tile_stored(1, sums.first + 16, stride);
    _tile_stored(2, sums.first + 32, stride);
    _tile_stored(3, sums.first + 48, stride);
    memory_is_written();
  }

 private:
  // The intrinsics do not say what memory they read.
  FASTRNN_FN static void memory_is_written() { asm volatile("" ::: "memory"); }

  FASTRNN_FN static void begin_pair(bool at_zero, const TileSums& sums) {
    const int64_t stride = sums.stride * 4;
    memory_is_written();
    if (at_zero && sums.bias != nullptr) {
      _tile_loadd(0, sums.bias, 0);
      _tile_loadd(1, sums.bias + 16, 0);
      _tile_loadd(2, sums.bias, 0);
      _tile_loadd(3, sums.bias + 16, 0);
    } else if (at_zero) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, sums.first, stride);
      _tile_loadd(1, sums.first + 16, stride);
      _tile_loadd(2, sums.second, stride);
      _tile_loadd(3, sums.second + 16, stride);
    }
  }

  FASTRNN_FN static void begin_single(const float* bias) {
    memory_is_written();
    if (bias != nullptr) {
      _tile_loadd(0, bias, 0);
      _tile_loadd(1, bias + 16, 0);
      _tile_loadd(2, bias + 32, 0);
      _tile_loadd(3, bias + 48, 0);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }

  int rows_ = 0;
  Shape shape_ = Shape::kPair;
};

}  // namespace FASTRNN_NAMESPACE
