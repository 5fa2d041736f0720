// sin, cos and remainder, for the cells that use them
//
// Largest errors, tested against float64 and longdouble (tests/custom/test_custom_operations.py): sin and cos 0.9 ULP
// for arguments of any size; the remainder is exact if it has the sign of a, and rounded once otherwise.
#pragma once

#include "simd/activations.h"

namespace FASTRNN_NAMESPACE {

#if defined(FASTRNN_ISA_CUDA)

FASTRNN_FN Vec<float> sin(Vec<float> x) { return ::sinf(x.v); }
FASTRNN_FN Vec<double> sin(Vec<double> x) { return ::sin(x.v); }
FASTRNN_FN Vec<float> cos(Vec<float> x) { return ::cosf(x.v); }
FASTRNN_FN Vec<double> cos(Vec<double> x) { return ::cos(x.v); }
FASTRNN_FN Vec<float> truncated_remainder(Vec<float> a, Vec<float> b) { return ::fmodf(a.v, b.v); }
FASTRNN_FN Vec<double> truncated_remainder(Vec<double> a, Vec<double> b) { return ::fmod(a.v, b.v); }

#else

// kHalfPi: parts with the sum π/2. Products of the first three with n are exact, up to kLimit: they have 13 (33) bits,
// n has 11 (20). kRound: as in ExpConstants, with zero low bits.
template <class C>
struct QuadrantConstants;
template <>
struct QuadrantConstants<float> {
  static constexpr float kLimit = 3200.0f, kRound = 12582912.0f;
  static constexpr float kHalfPi[] = {0x1.921p+0f, 0x1.f6ap-13f, 0x1.11p-26f, 0x1.68c234p-39f};
};
template <>
struct QuadrantConstants<double> {
  static constexpr double kLimit = 1.6e6, kRound = 6755399441055744.0;
  static constexpr double kHalfPi[] = {0x1.921fb544p+0, 0x1.0b4611a6p-34, 0x1.3198a2ep-69, 0x1.b839a252049c1p-104};
};

// Taylor coefficients of (sin(r) - r) / r³ and (cos(r) - 1 + r²/2) / r⁴ in r², for |r| ≤ π/4; the truncation error is
// below 0.05 ULP.
template <class C>
struct SineConstants;
template <>
struct SineConstants<float> {
  static constexpr float kQ[] = {-1.0f / 6, 1.0f / 120, -1.0f / 5040, 1.0f / 362880};
};
template <>
struct SineConstants<double> {
  static constexpr double kQ[] = {-1.0 / 6,        1.0 / 120,        -1.0 / 5040,          1.0 / 362880,
                                  -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000, 1.0 / 355687428096000};
};
template <class C>
struct CosineConstants;
template <>
struct CosineConstants<float> {
  static constexpr float kQ[] = {1.0f / 24, -1.0f / 720, 1.0f / 40320, -1.0f / 3628800};
};
template <>
struct CosineConstants<double> {
  static constexpr double kQ[] = {1.0 / 24,        -1.0 / 720,         1.0 / 40320,          -1.0 / 3628800,
                                  1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000, -1.0 / 6402373705728000};
};

// sin(a + Shift·π/2), for a from 0 to kLimit
template <int Shift, class C>
FASTRNN_FN Vec<C> shifted_sine(Vec<C> a) {
  using K = QuadrantConstants<C>;
  constexpr C kTwoOverPi = C(0.63661977236758134308);
  const Vec<C> one(C(1)), shifted = fma(a, Vec<C>(kTwoOverPi), Vec<C>(K::kRound)), n = shifted - Vec<C>(K::kRound);
  // r + low = a - n·π/2; `lost`: the rounding errors of the differences
  Vec<C> r = a - n * Vec<C>(K::kHalfPi[0]), lost = Vec<C>::zero();
  FASTRNN_UNROLL
  for (int k = 1; k < 3; ++k) {
    const Vec<C> part = n * Vec<C>(K::kHalfPi[k]), difference = r - part;
    lost = lost + ((r - difference) - part);
    r = difference;
  }
  const Vec<C> rest = lost - n * Vec<C>(K::kHalfPi[3]), high = r + rest, low = (r - high) + rest;
  r = high;
  const Vec<C> z = r * r, half = z * Vec<C>(C(0.5)), nearly = one - half;
  const Vec<C> sine = r + fma(r * z, polynomial<SineConstants<C>>(z), low * nearly);
  const Vec<C> cosine = nearly + fma(z * z, polynomial<CosineConstants<C>>(z), ((one - nearly) - half) - r * low);
  const auto quadrant = bits(shifted) + Shift;
  const auto odd = -(quadrant & 1);
  const auto chosen = (bits(sine) & ~odd) | (bits(cosine) & odd);
  return from_bits<C>(chosen ^ ((quadrant & 2) << (static_cast<int>(sizeof(C)) * 8 - 2)));
}

// Lane by lane with the C library's function: float, then double
#define FASTRNN_BY_LANES(name, function)                                                        \
  template <class C>                                                                            \
  __attribute__((noinline)) void name(Vec<C>& x) {                                              \
    for (int k = 0; k < Vec<C>::kLanes; ++k) {                                                  \
      x.v[k] = sizeof(C) == 4 ? __builtin_##function##f(x.v[k]) : __builtin_##function(x.v[k]); \
    }                                                                                           \
  }
FASTRNN_BY_LANES(sin_by_lanes, sin)
FASTRNN_BY_LANES(cos_by_lanes, cos)
#undef FASTRNN_BY_LANES

template <class C>
FASTRNN_FN bool any_above(Vec<C> a, C limit) {
  const auto above = a.v > Vec<C>(limit).v;
  typename Vec<C>::Integer any = 0;
  FASTRNN_UNROLL
  for (int k = 0; k < Vec<C>::kLanes; ++k) any |= above[k];
  return any != 0;
}

template <class C>
FASTRNN_FN Vec<C> sin(Vec<C> x) {
  const Vec<C> a = abs(x);
  if (__builtin_expect(any_above(a, QuadrantConstants<C>::kLimit), 0)) {
    sin_by_lanes(x);
    return x;
  }
  return from_bits<C>(bits(shifted_sine<0>(a)) ^ (bits(x) & sign_mask<C>()));
}
template <class C>
FASTRNN_FN Vec<C> cos(Vec<C> x) {
  const Vec<C> a = abs(x);
  if (__builtin_expect(any_above(a, QuadrantConstants<C>::kLimit), 0)) {
    cos_by_lanes(x);
    return x;
  }
  return shifted_sine<1>(a);
}

// a - b·trunc(a / b), exact; by the C library, because the quotient may have any size
template <class C>
FASTRNN_FN Vec<C> truncated_remainder(Vec<C> a, Vec<C> b) {
  for (int k = 0; k < Vec<C>::kLanes; ++k) {
    a.v[k] = sizeof(C) == 4 ? __builtin_fmodf(a.v[k], b.v[k]) : __builtin_fmod(a.v[k], b.v[k]);
  }
  return a;
}

#endif

// a - b·floor(a / b), with the sign of b
template <class C>
FASTRNN_FN Vec<C> remainder(Vec<C> a, Vec<C> b) {
  const Vec<C> zero = Vec<C>::zero(), r = truncated_remainder(a, b), other = r + b;
  const Vec<C> positive = where_less(r, zero, other, r), negative = where_less(zero, r, other, r);
  return where_less(b, zero, negative, positive);
}

}  // namespace FASTRNN_NAMESPACE
