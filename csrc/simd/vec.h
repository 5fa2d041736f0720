// The SIMD vector that kernels compute with: Vec<float> or Vec<double>, as wide as the registers of the instruction
// set.
//
// Arithmetic uses the compiler's vector extension, which yields SSE2, AVX2, AVX-512 and NEON from one source; only
// operations without an equivalent there (fused multiply-add, 16-bit conversions, partial loads of AVX-512) use
// intrinsics. Included in the target region of an instruction set, where no function of the standard library may be
// used.
#pragma once

#include "simd/half.h"
#include "simd/qualifiers.h"

#if defined(FASTRNN_ISA_CUDA)
#include "simd/scalar.h"
#else

namespace FASTRNN_NAMESPACE {

#if defined(FASTRNN_ISA_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(FASTRNN_ISA_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

// The compiler's vector of C, and that of its bits. (Explicit, because GCC drops the attribute from a dependent type.)
template <class C>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Integer = int32_t;
  typedef float Native __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  using Integer = int64_t;
  typedef double Native __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <class C>
struct Vec {
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(C));
  using Lane = C;
  using Integer = typename VectorOf<C>::Integer;
  using Native = typename VectorOf<C>::Native;
  using Bits = typename VectorOf<C>::Bits;

  Native v;

  Vec() = default;
  FASTRNN_FN Vec(Native native) : v(native) {}
  FASTRNN_FN Vec(C scalar) : v(scalar - Native{}) {}
  FASTRNN_FN static Vec zero() { return Vec(Native{}); }

  FASTRNN_FN static Vec load(const C* p) {
    Vec r;
    memcpy(&r.v, p, sizeof(Native));
    return r;
  }
  FASTRNN_FN void store(C* p) const { memcpy(p, &v, sizeof(Native)); }

  friend FASTRNN_FN Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend FASTRNN_FN Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend FASTRNN_FN Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend FASTRNN_FN Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend FASTRNN_FN Vec operator-(Vec a) { return -a.v; }
};

// a·b + c, rounded once if the hardware can (x86-64 without FMA rounds twice)
#if defined(FASTRNN_ISA_AVX512)
FASTRNN_FN Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
FASTRNN_FN Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
#elif defined(FASTRNN_ISA_AVX2)
FASTRNN_FN Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
FASTRNN_FN Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
#elif defined(__aarch64__)
FASTRNN_FN Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>::Native)vfmaq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v);
}
FASTRNN_FN Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>::Native)vfmaq_f64((float64x2_t)c.v, (float64x2_t)a.v, (float64x2_t)b.v);
}
#else
template <class C>
FASTRNN_FN Vec<C> fma(Vec<C> a, Vec<C> b, Vec<C> c) {
  return a * b + c;
}
#endif

// a > b ? a : b, and so on; a NaN in the *second* argument is propagated, as the clamps below require.
template <class C>
FASTRNN_FN Vec<C> max(Vec<C> a, Vec<C> b) {
  return a.v > b.v ? a.v : b.v;
}
template <class C>
FASTRNN_FN Vec<C> min(Vec<C> a, Vec<C> b) {
  return a.v < b.v ? a.v : b.v;
}
// 1 / b with an error of at most 2 ULP; |b| from 2^-126 to 2^125
template <class C>
FASTRNN_FN Vec<C> reciprocal(Vec<C> b) {
  return Vec<C>(C(1)) / b;
}
#if defined(FASTRNN_ISA_AVX512)
FASTRNN_FN Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a.v, b.v); }
FASTRNN_FN Vec<float> min(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a.v, b.v); }
// A vector division takes 16 cycles, and an LSTM unit has five quotients: a reciprocal of 14 bits and a Newton step
// take three.
FASTRNN_FN Vec<float> reciprocal(Vec<float> b) {
  const __m512 guess = _mm512_rcp14_ps(b.v);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(b.v, guess, _mm512_set1_ps(1.0f)), guess, guess);
}
#elif defined(FASTRNN_ISA_AVX2)
FASTRNN_FN Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a.v, b.v); }
FASTRNN_FN Vec<float> min(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a.v, b.v); }
#endif
// x ≤ 0 ? a : b; false for NaN
template <class C>
FASTRNN_FN Vec<C> where_not_positive(Vec<C> x, Vec<C> a, Vec<C> b) {
  return x.v <= typename Vec<C>::Native{} ? a.v : b.v;
}
// a < b ? c : d, and a ≤ b ? c : d; both false for NaN
template <class C>
FASTRNN_FN Vec<C> where_less(Vec<C> a, Vec<C> b, Vec<C> c, Vec<C> d) {
  return a.v < b.v ? c.v : d.v;
}
template <class C>
FASTRNN_FN Vec<C> where_at_most(Vec<C> a, Vec<C> b, Vec<C> c, Vec<C> d) {
  return a.v <= b.v ? c.v : d.v;
}
template <class C>
FASTRNN_FN Vec<C> sqrt(Vec<C> x) {
  FASTRNN_UNROLL
  for (int k = 0; k < Vec<C>::kLanes; ++k) x.v[k] = sizeof(C) == 4 ? __builtin_sqrtf(x.v[k]) : __builtin_sqrt(x.v[k]);
  return x;
}
template <class C>
FASTRNN_FN typename Vec<C>::Bits bits(Vec<C> x) {
  return bit_cast<typename Vec<C>::Bits>(x.v);
}
template <class C>
FASTRNN_FN Vec<C> from_bits(typename Vec<C>::Bits x) {
  return Vec<C>(bit_cast<typename Vec<C>::Native>(x));
}
template <class C>
FASTRNN_FN typename Vec<C>::Bits sign_mask() {
  using Integer = typename Vec<C>::Integer;
  return static_cast<Integer>(static_cast<Integer>(1) << (sizeof(C) * 8 - 1)) - typename Vec<C>::Bits{};
}
template <class C>
FASTRNN_FN Vec<C> abs(Vec<C> x) {
  return from_bits<C>(bits(x) & ~sign_mask<C>());
}
// |magnitude| with the sign of `sign`
template <class C>
FASTRNN_FN Vec<C> copysign(Vec<C> magnitude, Vec<C> sign) {
  return from_bits<C>((bits(magnitude) & ~sign_mask<C>()) | (bits(sign) & sign_mask<C>()));
}

// Transposes: block[i] lane k and block[k] lane i are exchanged, first in blocks of half the size, then of a quarter,
// down to single lanes.
template <int... I>
struct Numbers {};
template <int N, int... I>
struct NumbersTo : NumbersTo<N - 1, N - 1, I...> {};
template <int... I>
struct NumbersTo<0, I...> {
  using type = Numbers<I...>;
};
template <int Distance, class C, int... I>
FASTRNN_FN void exchange(Vec<C>& a, Vec<C>& b, Numbers<I...>) {
  constexpr int kLanes = Vec<C>::kLanes;
  const auto x = a.v, y = b.v;
#if defined(__clang__)
  a = Vec<C>(__builtin_shufflevector(x, y, ((I & Distance) != 0 ? kLanes + I - Distance : I)...));
  b = Vec<C>(__builtin_shufflevector(x, y, ((I & Distance) != 0 ? kLanes + I : I + Distance)...));
#else
  using Bits = typename VectorOf<C>::Bits;
  a = Vec<C>(__builtin_shuffle(x, y, Bits{((I & Distance) != 0 ? kLanes + I - Distance : I)...}));
  b = Vec<C>(__builtin_shuffle(x, y, Bits{((I & Distance) != 0 ? kLanes + I : I + Distance)...}));
#endif
}
template <int Distance, class C>
FASTRNN_FN void transpose_from(Vec<C>* block) {
  if constexpr (Distance > 0) {
    FASTRNN_UNROLL
    for (int i = 0; i < Vec<C>::kLanes; ++i) {
      if ((i & Distance) == 0) {
        exchange<Distance>(block[i], block[i + Distance], typename NumbersTo<Vec<C>::kLanes>::type());
      }
    }
    transpose_from<Distance / 2>(block);
  }
}
template <class C>
FASTRNN_FN void transpose(Vec<C>* block) {
  transpose_from<Vec<C>::kLanes / 2>(block);
}

}  // namespace FASTRNN_NAMESPACE

#endif
