// Products of parts: their operands, and the common code of the two implementations, AMX (unit_matrix.h) and SIMD
// vectors (unit_vector.h). Each defines a struct TileUnit with
//   use(rows, shape)  declares the following calls; only one unit of a thread may be in use
//   pair<Parts>()     two blocks of `rows` rows × two columns, over a piece of the depth
//   single<Parts>()   one block of rows × kPass columns, over the whole depth
//   kNear             tiles along the depth that a pair of columns should be multiplied by at a time
//   kNearBytes        weights of more bytes should be prefetched
//   kSpeed            speed of the multiply-adds of parts relative to float32
//
// A sum runs over the depth 32 at a time and, within these, over the products of parts in one order: (1, 0) (0, 0) (0,
// 1) of (operand's, weights') parts as far as they exist, for every shape: the same bits for any number of rows,
// columns and threads. At least two products are accumulated at a time, so that chains are short; numbers below 2^-126
// count as zero.
//
// The instructions handle infinities and NaN, but parts do not: ∞·w becomes ∞·w₀ + ∞·w₁, which may be ∞ - ∞. A sum that
// is NaN is therefore recomputed from the whole numbers (mend).
#pragma once

#include "cpu/parts.h"

namespace FASTRNN_NAMESPACE {

constexpr int kPass = 4;  // columns (of 16 outputs each) computed together

// Rows of numbers in parts: row r at depth 32·k, part p starts at data[r·row + k·block + p·part].
struct TileRows {
  const uint16_t* data;
  int64_t row, block, part;
  TileRows from(int64_t r) const { return {data + r * row, row, block, part}; }
};

// Weights in parts: the pair-layout tile of column c, depth 32·k, part p starts at data[((c·blocks) + k)·Parts + p
// tiles].
template <int Parts>
struct TileColumns {
  const uint16_t* data;
  int64_t blocks;
  const uint16_t* tile(int64_t c, int64_t k) const { return data + (c * blocks + k) * Parts * kTileSize; }
};

// Data to prefetch into the L2 cache meanwhile: `lines` cache lines at each depth
struct Fetch {
  const char* from = nullptr;
  int lines = 0;
  FASTRNN_FN void some() {
    for (int line = 0; line < lines; ++line, from += 64) __builtin_prefetch(from, 0, 2);
  }
};

// Destination of sums: those of a row at first + row·stride + 16·column, those of a pair's second block from `second`
// on. At depth 0 they start with `bias` (of the columns; null: zero), elsewhere with the stored values.
struct TileSums {
  float *first, *second;
  int64_t stride;
  const float* bias;
};

enum class Shape { kPair, kSingle };

// One row times one column (starting with a bias), from whole numbers
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

// Return true if any of n vectors of sums holds a NaN.
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

// Recomputes the lanes of a sum of x's first row that are NaN.
template <int Parts>
void mend(const TileRows& x, const TileColumns<Parts>& w, int64_t column, const float* bias, float* out) {
  const __m512 sum = _mm512_loadu_ps(out);
  const __mmask16 nan = _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q);
  if (nan != 0) _mm512_mask_storeu_ps(out, nan, plain_product<Parts>(x, w, column, bias).v);
}

}  // namespace FASTRNN_NAMESPACE
