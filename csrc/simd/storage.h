// Loads and stores between a storage dtype (float, double, BFloat16, Float16; int8_t for loads) and the vector of its
// compute dtype. `n` is the number of valid lanes: nothing past it is read or written, and lanes past it load as zero.
#pragma once

#include "simd/compute.h"
#include "simd/vec.h"

namespace FASTRNN_NAMESPACE {

FASTRNN_FN Vec<float> load(const float* p) { return Vec<float>::load(p); }
FASTRNN_FN Vec<double> load(const double* p) { return Vec<double>::load(p); }
FASTRNN_FN void store(Vec<float> x, float* p) { x.store(p); }
FASTRNN_FN void store(Vec<double> x, double* p) { x.store(p); }

#if defined(FASTRNN_ISA_AVX512)
FASTRNN_FN Vec<float> load(const int8_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return Vec<float>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw)));
}
FASTRNN_FN Vec<float> load(const BFloat16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return Vec<float>(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16)));
}
FASTRNN_FN void store(Vec<float> x, BFloat16* p) {
  const __m512i u = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
FASTRNN_FN Vec<float> load(const Float16* p) {
  return Vec<float>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
FASTRNN_FN void store(Vec<float> x, Float16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(FASTRNN_ISA_AVX2)
FASTRNN_FN Vec<float> load(const int8_t* p) {
  const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return Vec<float>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw)));
}
FASTRNN_FN Vec<float> load(const BFloat16* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return Vec<float>(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16)));
}
FASTRNN_FN void store(Vec<float> x, BFloat16* p) {
  const __m256i u = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
FASTRNN_FN Vec<float> load(const Float16* p) {
  return Vec<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
FASTRNN_FN void store(Vec<float> x, Float16* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
#else
template <class T>
FASTRNN_FN Vec<float> load(const T* p) {
  float lanes[Vec<float>::kLanes];
  for (int k = 0; k < Vec<float>::kLanes; ++k) lanes[k] = widen(p[k]);
  return Vec<float>::load(lanes);
}
template <class T>
FASTRNN_FN void store(Vec<float> x, T* p) {
  float lanes[Vec<float>::kLanes];
  x.store(lanes);
  for (int k = 0; k < Vec<float>::kLanes; ++k) narrow(lanes[k], p + k);
}
#endif

// The first n < kLanes lanes
template <class T>
FASTRNN_FN Vec<Compute<T>> load_some(const T* p, int n) {
#if defined(FASTRNN_ISA_AVX512)
  if constexpr (sizeof(T) == 4) return Vec<float>(_mm512_maskz_loadu_ps((1u << n) - 1u, p));
  if constexpr (sizeof(T) == 8) return Vec<double>(_mm512_maskz_loadu_pd((1u << n) - 1u, p));
#endif
  using C = Compute<T>;
  C lanes[Vec<C>::kLanes] = {};
  for (int k = 0; k < n; ++k) lanes[k] = widen(p[k]);
  return Vec<C>::load(lanes);
}
template <class T>
FASTRNN_FN void store_some(Vec<Compute<T>> x, T* p, int n) {
#if defined(FASTRNN_ISA_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, (1u << n) - 1u, x.v);
  if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_pd(p, (1u << n) - 1u, x.v);
#endif
  using C = Compute<T>;
  C lanes[Vec<C>::kLanes];
  x.store(lanes);
  for (int k = 0; k < n; ++k) narrow(lanes[k], p + k);
}

// The first n lanes, or all of them if there are more; n > 0
template <class T>
FASTRNN_FN Vec<Compute<T>> load_first(const T* p, int64_t n) {
  return n >= Vec<Compute<T>>::kLanes ? load(p) : load_some(p, static_cast<int>(n));
}
template <class C, class T>
FASTRNN_FN void store_first(Vec<C> x, T* p, int64_t n) {
  n >= Vec<C>::kLanes ? store(x, p) : store_some(x, p, static_cast<int>(n));
}

// The lanes of one vector of a row: all of them, or the row's last few. Full is a compile-time constant in the hot
// loop.
template <bool Full>
struct Lanes {
  int n;
  template <class T>
  FASTRNN_FN Vec<Compute<T>> load(const T* p) const {
    if constexpr (Full) return FASTRNN_NAMESPACE::load(p);
    return load_some(p, n);
  }
  template <class C, class T>
  FASTRNN_FN void store(Vec<C> x, T* p) const {
    if constexpr (Full) return FASTRNN_NAMESPACE::store(x, p);
    store_some(x, p, n);
  }
};

}  // namespace FASTRNN_NAMESPACE
