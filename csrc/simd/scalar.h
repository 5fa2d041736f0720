// Vec of one lane, for a GPU thread or its emulation. Included by simd/vec.h.
#pragma once

#include <math.h>

#include "simd/half.h"
#include "simd/qualifiers.h"

namespace FASTRNN_NAMESPACE {

template <class C>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

template <class C>
struct Vec {
  static constexpr int kLanes = 1;
  using Lane = C;
  using Integer = typename IntegerOf<C>::type;

  C v;

  Vec() = default;
  FASTRNN_FN Vec(C scalar) : v(scalar) {}
  FASTRNN_FN static Vec zero() { return Vec(C(0)); }

  friend FASTRNN_FN Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend FASTRNN_FN Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend FASTRNN_FN Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend FASTRNN_FN Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend FASTRNN_FN Vec operator-(Vec a) { return -a.v; }
};

FASTRNN_FN Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return ::fmaf(a.v, b.v, c.v); }
FASTRNN_FN Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return ::fma(a.v, b.v, c.v); }

// a > b ? a : b, and so on; a NaN in the *second* argument is propagated.
template <class C>
FASTRNN_FN Vec<C> max(Vec<C> a, Vec<C> b) {
  return a.v > b.v ? a.v : b.v;
}
template <class C>
FASTRNN_FN Vec<C> min(Vec<C> a, Vec<C> b) {
  return a.v < b.v ? a.v : b.v;
}
#if defined(__CUDA_ARCH__)
FASTRNN_FN Vec<float> max(Vec<float> a, Vec<float> b) {  // one instruction for any argument
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a.v), "f"(b.v));
  return larger;
}
#endif
// `y`, off by some ULP, up or down by the last bit of x
FASTRNN_FN float off_by(int ulp, float y, float x) {
  return bit_cast<float>(bit_cast<int32_t>(y) + ((bit_cast<int32_t>(x) & 1) != 0 ? ulp : -ulp));
}
// 2^f, |f| ≤ ½, with an error of at most 2 ULP. Off the GPU the worst result that the instruction may return.
FASTRNN_FN float approximate_exp2(float f) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(f));
  return y;
#else
  return off_by(2, ::exp2f(f), f);
#endif
}
// 1 / b with an error of at most 1 ULP, on a GPU without branches for special values, unlike a division. Off the GPU
// the worst result that the instruction may return.
FASTRNN_FN float approximate_reciprocal(float b) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(b));
  return y;
#else
  return off_by(1, 1.0f / b, b);
#endif
}
// For b from 1 to 8e37, the divisors in activations, and for NaN. A Newton step squares the approximation's relative
// error of 2^-23; what remains is one rounding, 2^-24, plus 2^-46.
FASTRNN_FN Vec<float> reciprocal(Vec<float> b) {
  const float y = approximate_reciprocal(b.v);
  return ::fmaf(::fmaf(-b.v, y, 1.0f), y, y);
}
FASTRNN_FN Vec<double> reciprocal(Vec<double> b) { return 1.0 / b.v; }
// x ≤ 0 ? a : b; false for NaN
template <class C>
FASTRNN_FN Vec<C> where_not_positive(Vec<C> x, Vec<C> a, Vec<C> b) {
  return x.v <= C(0) ? a.v : b.v;
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
FASTRNN_FN Vec<float> sqrt(Vec<float> x) { return ::sqrtf(x.v); }
FASTRNN_FN Vec<double> sqrt(Vec<double> x) { return ::sqrt(x.v); }
template <class C>
FASTRNN_FN typename Vec<C>::Integer bits(Vec<C> x) {
  return bit_cast<typename Vec<C>::Integer>(x.v);
}
template <class C>
FASTRNN_FN Vec<C> from_bits(typename Vec<C>::Integer x) {
  return Vec<C>(bit_cast<C>(x));
}
FASTRNN_FN Vec<float> abs(Vec<float> x) { return ::fabsf(x.v); }
FASTRNN_FN Vec<double> abs(Vec<double> x) { return ::fabs(x.v); }
FASTRNN_FN Vec<float> copysign(Vec<float> magnitude, Vec<float> sign) { return ::copysignf(magnitude.v, sign.v); }
FASTRNN_FN Vec<double> copysign(Vec<double> magnitude, Vec<double> sign) { return ::copysign(magnitude.v, sign.v); }

}  // namespace FASTRNN_NAMESPACE
