// Products of few float32 rows with matrices in bfloat16 or int8, read as they lie in memory.
//
// A stream's step reads each matrix once, so the time depends on its bytes and on the instructions that widen its
// elements. Each row of `a` is first laid out in the order in which whole vectors of the matrix yield their elements:
//   bfloat16: a shift and a mask of a vector of 16-bit elements give its even and odd elements in float32. Products and
//     sums are in float32.
//   int8: integer products with exact sums. A row of `a` is rounded to 16 bits in each piece of the depth, relative to
//     its largest absolute value there. Rounding the weights to 8 bits causes an error 257 times as large.
// The baseline instruction set converts int8 to float32 instead.
#pragma once

#include "cpu/small.h"

namespace FASTRNN_NAMESPACE {

constexpr int kFloats = Vec<float>::kLanes;
// The depth is computed in pieces, so that chains have at most kDotLinks products, as in small.h.
constexpr int64_t kPiece = kDotLinks * kFloats;

// Layout of a row of `a` for matrices of W: kHeader bytes before every piece, then blocks of kWidth elements with
// kBytes each. A row of the matrix has kSums vectors of partial sums.
template <class W>
struct LaidOut {
  static constexpr bool kExists = false;
};

template <>
struct LaidOut<BFloat16> {
  static constexpr bool kExists = true, kScaled = false;
  static constexpr int64_t kWidth = 2 * kFloats, kBytes = 4, kHeader = 0;
  static constexpr int kSums = 2;
  using Sum = Vec<float>;

  // In each block the even elements, then the odd ones; zeros past the end
  static float lay_out(const float* x, int64_t count, char* out) {
    auto* to = reinterpret_cast<float*>(out);
    for (int64_t k = 0; k < count; k += kWidth) {
      const bool whole = k + kWidth <= count;
      for (int64_t i = 0; i < kFloats; ++i) {
        const int64_t even = k + 2 * i, odd = even + 1;
        to[k + i] = whole || even < count ? x[even] : 0.0f;
        to[k + kFloats + i] = whole || odd < count ? x[odd] : 0.0f;
      }
    }
    return 1;
  }

  FASTRNN_FN static void add(const char* x, const void* w, Sum (&sum)[kSums]) {
    using Bits = Vec<float>::Bits;
    Bits both, high;
    memcpy(&both, w, sizeof(both));
    high = both & static_cast<int32_t>(0xffff0000);
    both = both << 16;
    const auto* at = reinterpret_cast<const float*>(x);
    sum[0] = fma(Vec<float>::load(at), Vec<float>((Vec<float>::Native)both), sum[0]);
    sum[1] = fma(Vec<float>::load(at + kFloats), Vec<float>((Vec<float>::Native)high), sum[1]);
  }
  FASTRNN_FN static void start(const char*, Sum (&sum)[kSums]) { sum[0] = sum[1] = Sum::zero(); }
  FASTRNN_FN static Vec<float> total(const Sum (&sum)[kSums]) { return sum[0] + sum[1]; }
};

#if defined(FASTRNN_ISA_AVX512) || defined(FASTRNN_ISA_AVX2)

// Rounds to 16-bit integers. Returns the scale, or a negative number if there is none: infinity, NaN or tiny numbers.
FASTRNN_FN float round_to_16_bits(const float* x, int64_t count, int16_t* to, int64_t whole) {
  constexpr float kMost = 127 * 256 + 127;  // what two signed bytes hold, both ways
  // Infinity or NaN times zero turns the sum into NaN.
  Vec<float> largest_lanes = Vec<float>::zero(), sum = Vec<float>::zero();
  for (int64_t k = 0; k < count; k += kFloats) {
    const Vec<float> v = load_first(x + k, count - k);
    largest_lanes = max(largest_lanes, max(v, -v));
    sum = fma(v, Vec<float>::zero(), sum);
  }
  alignas(64) float lanes[2][kFloats];
  largest_lanes.store(lanes[0]);
  sum.store(lanes[1]);
  float largest = 0, total = 0;
  for (int i = 0; i < kFloats; ++i) {
    largest = lanes[0][i] > largest ? lanes[0][i] : largest;
    total += lanes[1][i];
  }
  if (total != 0 || (largest > 0 && largest < 1e-30f)) return -1;
  const float factor = largest > 0 ? kMost / largest : 0;
  for (int64_t k = 0; k < count; ++k) {
    const float scaled = x[k] * factor;
    to[k] = static_cast<int16_t>(static_cast<int32_t>(scaled + (scaled < 0 ? -0.5f : 0.5f)));
  }
  for (int64_t k = count; k < whole; ++k) to[k] = 0;
  return largest / kMost;
}

#if defined(FASTRNN_HAS_TILES)  // processors with these have integer products too

// vpdpbusd multiplies unsigned by signed bytes: a weight w is used as w + 128, an element of `a` as two signed bytes,
// 256·high + low. The contribution of 128 does not depend on the weights: sums start at its negative.
template <>
struct LaidOut<int8_t> {
  using Sum = __m512i;
  static constexpr bool kExists = true, kScaled = true;
  static constexpr int kSums = 2;                                                   // of high and of low bytes
  static constexpr int64_t kWidth = 64, kBytes = 2, kHeader = kSums * sizeof(Sum);  // the sums to start from

  static float lay_out(const float* x, int64_t count, char* out) {
    alignas(64) int16_t rounded[kPiece];
    const int64_t whole = (count + kWidth - 1) / kWidth * kWidth;
    const float scale = round_to_16_bits(x, count, rounded, whole);
    if (scale < 0) return scale;
    auto* bytes = reinterpret_cast<int8_t*>(out);
    Sum start[kSums] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    const Sum offset = _mm512_set1_epi8(-128);  // 128, unsigned
    for (int64_t k = 0; k < whole; k += kWidth) {
      int8_t* to = bytes + kHeader + 2 * k;
      for (int64_t i = 0; i < kWidth; ++i) {
        const int32_t value = rounded[k + i];
        const int32_t high = (value + 128) >> 8;
        to[i] = static_cast<int8_t>(high);
        to[kWidth + i] = static_cast<int8_t>(value - 256 * high);
      }
      for (int part = 0; part < kSums; ++part)
        start[part] = _mm512_dpbusd_epi32(start[part], offset, _mm512_loadu_si512(to + part * kWidth));
    }
    for (int part = 0; part < kSums; ++part)
      _mm512_storeu_si512(bytes + part * sizeof(Sum), _mm512_sub_epi32(_mm512_setzero_si512(), start[part]));
    return scale;
  }

  FASTRNN_FN static void start(const char* piece, Sum (&sum)[kSums]) {
    for (int part = 0; part < kSums; ++part) sum[part] = _mm512_loadu_si512(piece + part * sizeof(Sum));
  }
  FASTRNN_FN static void add(const char* x, const void* w, Sum (&sum)[kSums]) {
    const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128));
    sum[0] = _mm512_dpbusd_epi32(sum[0], weights, _mm512_loadu_si512(x));
    sum[1] = _mm512_dpbusd_epi32(sum[1], weights, _mm512_loadu_si512(x + kWidth));
  }
  FASTRNN_FN static Vec<float> total(const Sum (&sum)[kSums]) {
    return Vec<float>(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum[0], 8), sum[1])));
  }
};

#else

template <>
struct LaidOut<int8_t> {
  static constexpr bool kExists = true, kScaled = true;
  static constexpr int kSums = 1;
  static constexpr int64_t kWidth = kVectorBytes / 2, kBytes = 2, kHeader = 0;
#if defined(FASTRNN_ISA_AVX512)
  using Sum = __m512i;
  FASTRNN_FN static void add(const char* x, const void* w, Sum (&sum)[kSums]) {
    const __m512i weights = _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(w)));
    sum[0] = _mm512_add_epi32(sum[0], _mm512_madd_epi16(weights, _mm512_loadu_si512(x)));
  }
  FASTRNN_FN static Vec<float> total(const Sum (&sum)[kSums]) { return Vec<float>(_mm512_cvtepi32_ps(sum[0])); }
#else
  using Sum = __m256i;
  FASTRNN_FN static void add(const char* x, const void* w, Sum (&sum)[kSums]) {
    const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(w)));
    const __m256i factors = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(weights, factors));
  }
  FASTRNN_FN static Vec<float> total(const Sum (&sum)[kSums]) { return Vec<float>(_mm256_cvtepi32_ps(sum[0])); }
#endif
  FASTRNN_FN static void start(const char*, Sum (&sum)[kSums]) { sum[0] = Sum{}; }

  static float lay_out(const float* x, int64_t count, char* out) {
    return round_to_16_bits(x, count, reinterpret_cast<int16_t*>(out), (count + kWidth - 1) / kWidth * kWidth);
  }
};

#endif
#endif

// A row of `a` in its layout, and the scale of each piece
struct LaidOutRow {
  const char* data;
  const float* scales;
};

// Dot products of kFloats rows of b, `stride` apart, with one piece
template <class W>
FASTRNN_FN Vec<float> piece_dots(const char* piece, const W* b, int64_t stride, int64_t depth) {
  using Row = LaidOut<W>;
  constexpr int kAtOnce = kVectorRegisters / 2 / Row::kSums < kFloats ? kVectorRegisters / 2 / Row::kSums : kFloats;
  const char* x = piece + Row::kHeader;
  Vec<float> totals[kFloats];
  FASTRNN_UNROLL
  for (int begin = 0; begin < kFloats; begin += kAtOnce) {
    typename Row::Sum sum[kAtOnce][Row::kSums];
    FASTRNN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) Row::start(piece, sum[i]);
    int64_t k = 0;
    for (; k + Row::kWidth <= depth; k += Row::kWidth) {
      FASTRNN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) Row::add(x + k * Row::kBytes, b + (begin + i) * stride + k, sum[i]);
    }
    if (k < depth) {
      FASTRNN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        W rest[Row::kWidth] = {};
        memcpy(rest, b + (begin + i) * stride + k, (depth - k) * sizeof(W));
        Row::add(x + k * Row::kBytes, rest, sum[i]);
      }
    }
    FASTRNN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) totals[begin + i] = Row::total(sum[i]);
  }
  fold_lanes<kFloats / 2>(totals);
  return totals[0];
}

template <class W>
FASTRNN_FN Vec<float> row_dots(LaidOutRow row, const W* b, int64_t stride, int64_t depth) {
  using Row = LaidOut<W>;
  Vec<float> total = Vec<float>::zero();
  for (int64_t k = 0, i = 0; k < depth; k += kPiece, ++i) {
    Vec<float> sums = piece_dots(row.data, b + k, stride, smaller(kPiece, depth - k));
    if constexpr (Row::kScaled) sums = sums * Vec<float>(row.scales[i]);
    total = total + sums;
    row.data += Row::kHeader + kPiece * Row::kBytes;
  }
  return total;
}

// Lays out all rows of p.a in `out`, `bytes` each. Returns false if a row has infinity, NaN or numbers too small to be
// scaled.
template <class W>
bool lay_out_rows(const SmallProduct& p, int64_t bytes, int64_t pieces, char* out, float* scales) {
  using Row = LaidOut<W>;
  for (int64_t n = 0; n < p.rows; ++n) {
    const float* x = static_cast<const float*>(p.a) + n * p.a_row;
    for (int64_t i = 0; i < pieces; ++i) {
      char* to = out + n * bytes + i * (Row::kHeader + kPiece * Row::kBytes);
      const float scale = Row::lay_out(x + i * kPiece, smaller(kPiece, p.depth - i * kPiece), to);
      if (scale < 0) return false;
      scales[n * pieces + i] = scale;
    }
  }
  return true;
}

// out (N, M) = a (N, K) · b (M, K)ᵀ + bias (M), with b in bfloat16, or in int8 with a scale for each row
template <class W>
void narrow_by_rows(const SmallProduct& p) {
  using Row = LaidOut<W>;
  if constexpr (!Row::kExists) {
    return small_by_rows<float, W>(p);
  } else {
    constexpr int64_t kBuffer = 1 << 16, kScales = 64;
    const int64_t pieces = (p.depth + kPiece - 1) / kPiece, rest = p.depth - (pieces - 1) * kPiece;
    const int64_t bytes = (pieces - 1) * (Row::kHeader + kPiece * Row::kBytes) + Row::kHeader +
                          (rest + Row::kWidth - 1) / Row::kWidth * Row::kWidth * Row::kBytes;
    if (pieces > kScales || bytes > kBuffer) return small_by_rows<float, W>(p);
    alignas(64) char buffer[kBuffer];
    float scales[kScales];
    const int64_t at_once = smaller(kScales / pieces, kBuffer / bytes);
    for (int64_t n = 0; n < p.rows; n += at_once) {
      SmallProduct part = p;
      part.rows = smaller(at_once, p.rows - n);
      part.a = static_cast<const float*>(p.a) + n * p.a_row;
      part.out = static_cast<float*>(p.out) + n * p.out_row;
      if (!lay_out_rows<W>(part, bytes, pieces, buffer, scales)) {
        small_by_rows<float, W>(part);
        continue;
      }
      outputs_by_rows<float, Row::kScaled>(
          part, [&](int64_t i, int64_t m, int64_t stride) __attribute__((always_inline)) {
            const LaidOutRow row{buffer + i * bytes, scales + i * pieces};
            return row_dots(row, static_cast<const W*>(p.b) + m * p.b_row, stride, p.depth);
          });
    }
  }
}

}  // namespace FASTRNN_NAMESPACE
