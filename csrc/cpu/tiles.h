// The products of parts on the processor's matrix unit (AMX).
//
// A sum goes over the depth 32 at a time and, within these, over the products of parts in one order (kOrder), whatever
// the shape in which it is computed: the same bits for any number of rows, columns and threads. The unit adds 16 pairs
// of products to a float32 at a time, so that chains are short; it takes numbers below 2^-126 for zero.
//
// The unit knows infinities and NaN, but parts do not go with them: ∞·w is ∞·w₀ + ∞·w₁, which may be ∞ - ∞. A sum that
// turns out to be NaN is therefore computed again from the whole numbers (mend).
#pragma once

#include "cpu/parts.h"

namespace FASTRNN_NAMESPACE {

constexpr int kPass = 4;  // columns (of 16 outputs each) computed together

// Rows of numbers in parts: row r at depth 32·k, part p begins at data[r·row + k·block + p·part].
struct TileRows {
  const uint16_t* data;
  int64_t row, block, part;
  TileRows from(int64_t r) const { return {data + r * row, row, block, part}; }
};

// Weights in parts: the pair-form tile of column c, depth 32·k, part p begins at data[((c·blocks) + k)·Parts + p
// tiles].
template <int Parts>
struct TileColumns {
  const uint16_t* data;
  int64_t blocks;
  const uint16_t* tile(int64_t c, int64_t k) const { return data + (c * blocks + k) * Parts * kTileSize; }
};

// What is fetched into the second-level cache meanwhile: so many lines at each depth.
struct Fetch {
  const char* from = nullptr;
  int lines = 0;
  FASTRNN_FN void some() {
    for (int line = 0; line < lines; ++line, from += 64) __builtin_prefetch(from, 0, 2);
  }
};

// The intrinsics do not say what memory they read.
FASTRNN_FN void memory_is_written() { asm volatile("" ::: "memory"); }

// The shape of the registers: rows of the operand (registers 4, 5 and, for a single block of rows, 6) and of the sums
// (0 to 3). All are zero after it.
enum class Shape { kPair, kSingle };
inline void configure_tiles(int rows, Shape shape) {
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

// Depths 32·begin to 32·end of two blocks of rows (given from 32·begin on) × two columns: sums to
// out[row·stride + 16·column], the second block's from `second` on. They start from what is there, or at the beginning
// (depth 0) from zero or a bias for the columns.
template <int Parts>
void product_pair(const TileRows& x0, const TileRows& x1, const TileColumns<Parts>& w, int64_t column, Range depth,
                  float* out, float* second, int64_t stride, const float* bias, Fetch ahead) {
  const uint16_t *a0 = x0.data, *a1 = x1.data;
  const uint16_t *b0 = w.tile(column, depth.begin), *b1 = w.tile(column + 1, depth.begin);
  const int64_t row = x0.row * 2, part = x0.part;
  memory_is_written();
  if (depth.begin == 0 && bias != nullptr) {
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + 16, 0);
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + 16, 0);
  } else if (depth.begin == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, out, stride * 4);
    _tile_loadd(1, out + 16, stride * 4);
    _tile_loadd(2, second, stride * 4);
    _tile_loadd(3, second + 16, stride * 4);
  }
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
    // In the order (2, 0) (1, 0) (0, 0) (0, 1) (1, 1) (0, 2) of (operand's, weights') parts, where they exist: it
    // changes one of the two at a time where it can.
    if constexpr (Parts > 2) {
      FASTRNN_ROWS(2) FASTRNN_COLUMNS(0) FASTRNN_MULTIPLY FASTRNN_ROWS(1) FASTRNN_MULTIPLY
    } else if constexpr (Parts > 1) {
      FASTRNN_ROWS(1) FASTRNN_COLUMNS(0) FASTRNN_MULTIPLY
    } else {
      FASTRNN_COLUMNS(0)
    }
    FASTRNN_ROWS(0) FASTRNN_MULTIPLY if constexpr (Parts > 1) { FASTRNN_COLUMNS(1) FASTRNN_MULTIPLY }
    if constexpr (Parts > 2) {
      FASTRNN_ROWS(1) FASTRNN_MULTIPLY FASTRNN_ROWS(0) FASTRNN_COLUMNS(2) FASTRNN_MULTIPLY
    }
    a0 += x0.block;
    a1 += x0.block;
    b0 += Parts * kTileSize;
    b1 += Parts * kTileSize;
  }
#undef FASTRNN_ROWS
#undef FASTRNN_COLUMNS
#undef FASTRNN_MULTIPLY
  _tile_stored(0, out, stride * 4);
  _tile_stored(1, out + 16, stride * 4);
  _tile_stored(2, second, stride * 4);
  _tile_stored(3, second + 16, stride * 4);
  memory_is_written();
}

// Sums of one block of rows × kPass columns: each of the weights' tiles is read once.
template <int Parts>
void product_single(const TileRows& x, const TileColumns<Parts>& w, int64_t column, float* out, int64_t stride,
                    const float* bias, Fetch ahead) {
  const uint16_t *a = x.data, *b = w.tile(column, 0);
  const int64_t row = x.row * 2, part = x.part, next = w.blocks * Parts * kTileSize;
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
#define FASTRNN_MULTIPLY(p, c)                          \
  _tile_loadd(7, b + (c) * next + (p) * kTileSize, 64); \
  if constexpr (Parts > 2 && (p) == 0) {                \
    _tile_dpbf16ps(c, 6, 7);                            \
  }                                                     \
  if constexpr (Parts - (p) > 1 && (p) == 0) {          \
    _tile_dpbf16ps(c, 5, 7);                            \
  }                                                     \
  _tile_dpbf16ps(c, 4, 7);                              \
  if constexpr (Parts - (p) > 1 && (p) > 0) {           \
    _tile_dpbf16ps(c, 5, 7);                            \
  }
#define FASTRNN_PASS(p) FASTRNN_MULTIPLY(p, 0) FASTRNN_MULTIPLY(p, 1) FASTRNN_MULTIPLY(p, 2) FASTRNN_MULTIPLY(p, 3)
  for (int64_t k = 0; k < w.blocks; ++k) {
    ahead.some();
    _tile_loadd(4, a, row);
    if constexpr (Parts > 1) {
      _tile_loadd(5, a + part, row);
    }
    if constexpr (Parts > 2) {
      _tile_loadd(6, a + 2 * part, row);
    }
    FASTRNN_PASS(0)
    if constexpr (Parts > 1) {
      FASTRNN_PASS(1)
    }
    if constexpr (Parts > 2) {
      FASTRNN_PASS(2)
    }
    a += x.block;
    b += Parts * kTileSize;
  }
#undef FASTRNN_MULTIPLY
#undef FASTRNN_PASS
  _tile_stored(0, out, stride * 4);
  _tile_stored(1, out + 16, stride * 4);
  _tile_stored(2, out + 32, stride * 4);
  _tile_stored(3, out + 48, stride * 4);
  memory_is_written();
}

// One row times one column (from a bias on), from whole numbers.
template <int Parts>
__attribute__((noinline)) Vec<float> plain_product(const TileRows& x, const TileColumns<Parts>& w, int64_t column,
                                                   const float* bias) {
  Vec<float> sum = bias != nullptr ? Vec<float>::load(bias) : Vec<float>::zero();
  for (int64_t k = 0; k < w.blocks; ++k) {
    const uint16_t* tile = w.tile(column, k);
    for (int d = 0; d < kTileDepth; ++d) {
      float a = 0;
      Vec<float> b = Vec<float>::zero();
      for (int p = Parts - 1; p >= 0; --p) {
        a += widen(BFloat16{x.data[k * x.block + p * x.part + d]});
        const __m512i pairs = _mm512_loadu_si512(tile + p * kTileSize + d / 2 * kTileDepth);
        const __m512i high = d % 2 == 0 ? _mm512_slli_epi32(pairs, 16)
                                        : _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
        b = b + Vec<float>(_mm512_castsi512_ps(high));
      }
      sum = fma(Vec<float>(a), b, sum);
    }
  }
  return sum;
}

// Whether any of n vectors of sums holds a NaN.
template <int N>
FASTRNN_FN bool any_nan(const float* sums) {
  unsigned nan = 0;
  FASTRNN_UNROLL
  for (int v = 0; v + 1 < N; v += 2) {
    nan |= _mm512_cmp_ps_mask(_mm512_loadu_ps(sums + v * 16), _mm512_loadu_ps(sums + v * 16 + 16), _CMP_UNORD_Q);
  }
  if constexpr (N % 2 == 1) {
    const __m512 last = _mm512_loadu_ps(sums + (N - 1) * 16);
    nan |= _mm512_cmp_ps_mask(last, last, _CMP_UNORD_Q);
  }
  return __builtin_expect(nan != 0, 0);
}

// Computes the lanes of a sum of x's first row that are NaN again.
template <int Parts>
void mend(const TileRows& x, const TileColumns<Parts>& w, int64_t column, const float* bias, float* out) {
  const __m512 sum = _mm512_loadu_ps(out);
  const __mmask16 nan = _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q);
  if (nan != 0) _mm512_mask_storeu_ps(out, nan, plain_product<Parts>(x, w, column, bias).v);
}

}  // namespace FASTRNN_NAMESPACE
