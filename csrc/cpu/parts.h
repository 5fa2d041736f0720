// Numbers as sums of bfloat16 parts, and tiles of parts.
//
// x = x₀ + x₁, where the second part is the remainder of the first, each rounded to nearest (ties to even): one part
// holds 8 bits of a float32, two hold 16, and a float16 exactly. A product of two numbers of two parts is the sum of
// three products of parts, each exact, accumulated in float32; the omitted x₁·w₁ is at most 2^-16 of it.
//
// An infinity or NaN is its first part only, and so is a number beyond the largest bfloat16 (3.39e38), which becomes
// infinite. Parts below 2^-126 are zero.
//
// A tile is 16 rows of 32 parts, 1 KiB. Its pair layout has in row k the 16 lanes' parts at depths 2k and 2k + 1,
// adjacent; its lane layout has in row i lane i's 32 parts. Seen as 16 × 16 pairs, the two are transposes.
#pragma once

#include "cpu/pack.h"

namespace FASTRNN_NAMESPACE {

constexpr int kTileDepth = 32;
constexpr int kTileLanes = 16;
constexpr int64_t kTileSize = 512;  // parts in a tile

// The next part of x, in the lower halves of 32-bit lanes; x becomes the remainder.
FASTRNN_FN __m256i take_part(Vec<float>& x) {
  const __m256bh part = _mm512_cvtneps_pbh(x.v);
  const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)part), 16));
  constexpr int kNanOrInfinite = 0x01 | 0x08 | 0x10 | 0x80;
  const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(value, kNanOrInfinite));
  x = Vec<float>(_mm512_maskz_sub_ps(finite, x.v, value));
  return (__m256i)part;
}

// Writes the parts of the first n lanes of x, `apart` elements from one part to the next.
template <int Parts, bool Full>
FASTRNN_FN void store_parts(Vec<float> x, uint16_t* to, int64_t apart, Lanes<Full> lanes) {
  FASTRNN_UNROLL
  for (int p = 0; p < Parts; ++p) {
    const __m256i part = take_part(x);
    if constexpr (Full) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + p * apart), part);
    } else {
      _mm256_mask_storeu_epi16(to + p * apart, static_cast<__mmask16>((1u << lanes.n) - 1u), part);
    }
  }
}

template <class T>
FASTRNN_FN Vec<float> load_or_zero(const T* p, int64_t n) {
  return n > 0 ? load_first(p, n) : Vec<float>::zero();
}

template <class T>
constexpr bool kIsPart = false;
template <>
constexpr bool kIsPart<BFloat16> = true;

// The parts of 16 numbers at p, of which n exist; the others are zero.
template <int Parts, class T>
FASTRNN_FN void load_parts(const T* p, int64_t n, __m256i (&parts)[Parts]) {
  if constexpr (Parts == 1 && kIsPart<T>) {
    const unsigned there = n >= kTileLanes ? 0xffffu : (n > 0 ? (1u << n) - 1u : 0u);
    parts[0] = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(there), p);
  } else {
    Vec<float> x = load_or_zero(p, n);
    FASTRNN_UNROLL
    for (int k = 0; k < Parts; ++k) parts[k] = take_part(x);
  }
}

// A tile from numbers stored along the depth: lane i's start at from[i·stride]; `lanes` and `depth` of them exist, the
// others are zero. `Pairs` selects the pair layout, else the lane layout. Parts follow each other.
template <int Parts, bool Pairs, class T>
void tile_of_rows(const T* from, int64_t stride, int64_t lanes, int64_t depth, uint16_t* to) {
  Vec<float> part[Parts][kTileLanes];  // 32 bfloat16 each
  for (int lane = 0; lane < kTileLanes; ++lane) {
    const int64_t there = lane < lanes ? depth : 0;
    const T* row = from + (lane < lanes ? lane * stride : 0);
    __m256i low[Parts], high[Parts];
    load_parts<Parts>(row, there, low);
    load_parts<Parts>(row + 16, there - 16, high);
    FASTRNN_UNROLL
    for (int p = 0; p < Parts; ++p) {
      part[p][lane] = Vec<float>(_mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low[p]), high[p], 1)));
    }
  }
  for (int p = 0; p < Parts; ++p) {
    if constexpr (Pairs) transpose(part[p]);
    for (int row = 0; row < kTileLanes; ++row) {
      part[p][row].store(reinterpret_cast<float*>(to + p * kTileSize + row * kTileDepth));
    }
  }
}

// The same from numbers stored along the lanes: those of depth k start at from[k·stride].
template <int Parts, bool Pairs, class T>
void tile_of_columns(const T* from, int64_t stride, int64_t lanes, int64_t depth, uint16_t* to) {
  Vec<float> part[Parts][kTileLanes];
  for (int row = 0; row < kTileLanes; ++row) {
    const int64_t k = 2 * row;
    __m256i even[Parts], odd[Parts];
    load_parts<Parts>(from + k * stride, k < depth ? lanes : 0, even);
    load_parts<Parts>(from + (k + 1) * stride, k + 1 < depth ? lanes : 0, odd);
    FASTRNN_UNROLL
    for (int p = 0; p < Parts; ++p) {
      const __m512i low = _mm512_cvtepu16_epi32(even[p]), high = _mm512_cvtepu16_epi32(odd[p]);
      part[p][row] = Vec<float>(_mm512_castsi512_ps(_mm512_or_epi32(low, _mm512_slli_epi32(high, 16))));
    }
  }
  for (int p = 0; p < Parts; ++p) {
    if constexpr (!Pairs) transpose(part[p]);
    for (int row = 0; row < kTileLanes; ++row) {
      part[p][row].store(reinterpret_cast<float*>(to + p * kTileSize + row * kTileDepth));
    }
  }
}

}  // namespace FASTRNN_NAMESPACE
