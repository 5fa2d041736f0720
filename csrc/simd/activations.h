// Activation functions of a vector, and their derivatives in terms of the *output*
//
// Largest errors, tested against float64 (tests/kernels/test_activations.py, test_custom_operations.py):
//   tanh: 1.5 ULP in float32, 3 in float64; exp: 2 ULP, sigmoid, log and softplus: 3 ULP in both (on a GPU in float32,
//   if the instructions for 2^f and 1/x are as wrong as they may be: tanh 3, sigmoid 7; sigmoid is zero
//   below about 1.6e-38 in float32 and 1e-307 in float64 instead of subnormal).
// NaN gives NaN; infinities give the limits, exactly: a closed gate is zero, and zero times infinity is NaN.
#pragma once

#include "simd/vec.h"

namespace FASTRNN_NAMESPACE {

template <class C>
struct ExpConstants;
// kQ: (exp(r) - 1 - r) / r² as a polynomial on |r| ≤ ln2/2. For float32 the one with least relative error (in exp:
// 4e-9, by Lawson's iteration), for float64 the Taylor polynomial.
template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693145751953125f;  // ln 2 - 1.4286e-6, with trailing zero bits: n·high is exact
  static constexpr float kLn2Low = 1.42860682030941723e-6f;
  static constexpr float kLimit = 87.0f;
  static constexpr int kMantissa = 23;
  // 1.5 · 2^23: adding it rounds to an integer in the low bits; plus the exponent bias, added along with it.
  static constexpr float kRound = 12582912.0f + 127.0f;
  static constexpr float kQ[] = {0.49999994f, 0.16666521f, 0.041668389f, 0.0083687454f, 0.0013814541f};
};
template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLimit = 706.0;
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 6755399441055744.0 + 1023.0;  // 1.5 · 2^52
  static constexpr double kQ[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                  1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                  1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

// Σ kQ[k]·r^k for k from K on, by Horner's rule; recursive, because GPU compilers treat array elements as constants
// only if their index is one.
template <class Constants, int K = 0, class C>
FASTRNN_FN Vec<C> polynomial(Vec<C> r) {
  constexpr int kTerms = sizeof(Constants::kQ) / sizeof(C);
  constexpr C kCoefficient = Constants::kQ[K];
  if constexpr (K + 1 == kTerms) {
    return Vec<C>(kCoefficient);
  } else {
    return fma(polynomial<Constants, K + 1>(r), r, Vec<C>(kCoefficient));
  }
}

// exp(x) = scale · (1 + p), with scale a power of two and p = expm1(r) accurate relative to itself; |x| ≤ kLimit.
template <class C>
struct SplitExp {
  Vec<C> scale, p;

  FASTRNN_FN explicit SplitExp(Vec<C> x) {
    using K = ExpConstants<C>;
    const Vec<C> shifted = fma(x, Vec<C>(K::kLog2e), Vec<C>(K::kRound));
    const Vec<C> n = shifted - Vec<C>(K::kRound);
    Vec<C> r = fma(n, Vec<C>(-K::kLn2High), x);
    r = fma(n, Vec<C>(-K::kLn2Low), r);
    p = fma(r * r, polynomial<K>(r), r);
    scale = from_bits<C>(bits(shifted) << K::kMantissa);
  }
};

// exp(x) + 1, |x| ≤ kLimit
template <class C>
FASTRNN_FN Vec<C> exp_plus_one(Vec<C> x) {
  const SplitExp<C> e(x);
  return fma(e.scale, e.p, e.scale) + Vec<C>(C(1));
}
#if defined(FASTRNN_ISA_CUDA)
// With the instruction for 2^f, |f| ≤ ½, half as many instructions
FASTRNN_FN Vec<float> exp_plus_one(Vec<float> x) {
  using K = ExpConstants<float>;
  constexpr float kLog2eLow = 1.92596299e-8f;  // log2 e - kLog2e
  const Vec<float> shifted = fma(x, Vec<float>(K::kLog2e), Vec<float>(K::kRound));
  const Vec<float> n = shifted - Vec<float>(K::kRound);
  const Vec<float> f = fma(x, Vec<float>(kLog2eLow), fma(x, Vec<float>(K::kLog2e), -n));
  return fma(from_bits<float>(bits(shifted) << K::kMantissa), Vec<float>(approximate_exp2(f.v)), Vec<float>(1.0f));
}
#endif

// The larger and the smaller of two values; NaN if either is NaN
template <class V>
FASTRNN_FN V larger_of(V a, V b) {
  return where_at_most(a, a, max(a, b), a);
}
template <class V>
FASTRNN_FN V smaller_of(V a, V b) {
  return where_at_most(a, a, min(a, b), a);
}

// log(m) = 2·atanh(s) = 2s·(1 + z·Σ kQ[k]·z^k), s = (m-1)/(m+1), z = s², for m from √½ to √2: |s| < 0.172.
template <class C>
struct LogConstants;
template <>
struct LogConstants<float> {
  static constexpr float kLeast = 1.17549435e-38f, kInfinity = __builtin_inff(), kNaN = __builtin_nanf("");
  static constexpr float kHalfOfLargestScale = 0x1p127f;
  static constexpr int kRootHalf = 0x3f3504f3, kBias = 127, kInteger = 0x4b000000;  // kInteger: bits of 2^23
  static constexpr float kIntegerBias = 8388608.0f + 127.0f;
  static constexpr float kQ[] = {1.0f / 3, 1.0f / 5, 1.0f / 7, 1.0f / 9, 1.0f / 11};
};
template <>
struct LogConstants<double> {
  static constexpr double kLeast = 2.2250738585072014e-308, kInfinity = __builtin_inf(), kNaN = __builtin_nan("");
  static constexpr double kHalfOfLargestScale = 0x1p1023;
  static constexpr int64_t kRootHalf = 0x3fe6a09e667f3bcd, kBias = 1023, kInteger = 0x4330000000000000;
  static constexpr double kIntegerBias = 4503599627370496.0 + 1023.0;
  static constexpr double kQ[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                                  1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23};
};

// The functions that a cell uses. Tests replace them by Linear for a recurrence that can be computed exactly.
struct Exact {
  // 1 / (1 + exp(-x))
  template <class C>
  FASTRNN_FN static Vec<C> sigmoid(Vec<C> x) {
    const Vec<C> low(-ExpConstants<C>::kLimit);
    const Vec<C> divisor = exp_plus_one(max(low, -x));  // meaningless for x < low
    return where_less(x, low, Vec<C>::zero(), reciprocal(divisor));
  }
  // x + x³·P(x²) near zero, 1 - 2 / (1 + exp(2|x|)) where that is at least 0.5; then the sign of x
  FASTRNN_FN static Vec<float> tanh(Vec<float> x) {
    const Vec<float> a = abs(x), z = a * a;
    const Vec<float> near = fma(a * z, tanh_polynomial(z), a);
    const Vec<float> q = reciprocal(exp_plus_one(min(Vec<float>(kTanhIsOne), a + a)));
    const Vec<float> far = fma(Vec<float>(-2.0f), q, Vec<float>(1.0f));
    return copysign(where_not_positive(a - Vec<float>(kTanhIsHalf), near, far), x);
  }
  // -t / (t + 2) with t = expm1(-2|x|), which is accurate near zero; then the sign of x
  FASTRNN_FN static Vec<double> tanh(Vec<double> x) {
    const SplitExp<double> e(max(Vec<double>(-ExpConstants<double>::kLimit), Vec<double>(-2.0) * abs(x)));
    const Vec<double> t = fma(e.scale, e.p, e.scale - Vec<double>(1.0));
    return copysign(t / (t + Vec<double>(2.0)), x);
  }
  // Infinite where torch's is; zero where the result would be subnormal
  template <class C>
  FASTRNN_FN static Vec<C> exp(Vec<C> x) {
    const C high = sizeof(C) == 4 ? C(89) : C(710), low = sizeof(C) == 4 ? C(-87.3) : C(-708.3);
    const Vec<C> infinity(LogConstants<C>::kInfinity);
    const SplitExp<C> e(min(Vec<C>(high), max(Vec<C>(low), x)));
    // Results from √½·2^128 (2^1024) on are finite, but their scale is not: they use twice the half of the scale.
    const Vec<C> scale = where_less(e.scale, infinity, e.scale, Vec<C>(LogConstants<C>::kHalfOfLargestScale));
    const Vec<C> y = scale * (e.p + Vec<C>(C(1)));  // not scale·p + scale, whose first term may be subnormal
    return where_less(x, Vec<C>(low), Vec<C>::zero(), where_less(e.scale, infinity, y, y + y));
  }
  // For subnormal numbers, the value for the smallest normal number
  template <class C>
  FASTRNN_FN static Vec<C> log(Vec<C> x) {
    using K = LogConstants<C>;
    constexpr int kMantissa = ExpConstants<C>::kMantissa;
    const Vec<C> zero = Vec<C>::zero(), safe = max(Vec<C>(K::kLeast), x);
    const auto n = (bits(safe) - K::kRootHalf) >> kMantissa;
    const Vec<C> m = from_bits<C>(bits(safe) - (n << kMantissa)) - Vec<C>(C(1));
    const Vec<C> exponent = from_bits<C>((n + K::kBias) | K::kInteger) - Vec<C>(K::kIntegerBias);
    const Vec<C> s = m / (m + Vec<C>(C(2))), z = s * s, twice = s + s;
    const Vec<C> tail = fma(exponent, Vec<C>(C(ExpConstants<C>::kLn2Low)), twice * (z * polynomial<K>(z)));
    const Vec<C> y = fma(exponent, Vec<C>(C(ExpConstants<C>::kLn2High)), twice + tail);
    const Vec<C> finite = where_less(x, Vec<C>(K::kInfinity), y, x);
    const Vec<C> otherwise = where_at_most(zero, x, Vec<C>(-K::kInfinity), Vec<C>(K::kNaN));
    return where_less(zero, x, finite, otherwise);
  }
  // log(1 + exp(x)), compensated for the rounding of 1 + exp(-|x|)
  template <class C>
  FASTRNN_FN static Vec<C> softplus(Vec<C> x) {
    const Vec<C> one(C(1)), u = exp(-abs(x)), w = one + u;
    return max(Vec<C>::zero(), x) + log(w) + (u - (w - one)) / w;
  }

 private:
  static constexpr float kTanhIsHalf = 0.55f, kTanhIsOne = 20.0f;  // kTanhIsOne is compared with 2|x|

  // (tanh(x) - x) / x³ as a function of z = x², z ≤ 0.55²; fitted like kQ, with an error of at most 1.1e-9 in tanh
  FASTRNN_FN static Vec<float> tanh_polynomial(Vec<float> z) {
    Vec<float> p = fma(Vec<float>(-0.006266697775572538f), z, Vec<float>(0.021066656336188316f));
    p = fma(p, z, Vec<float>(-0.053851168602705f));
    p = fma(p, z, Vec<float>(0.1333257555961609f));
    return fma(p, z, Vec<float>(-0.33333316445350647f));
  }
};

// d sigmoid / dx and d tanh / dx, from y = sigmoid(x) and y = tanh(x)
template <class V>
FASTRNN_FN V sigmoid_slope(V y) {
  return y * (V(typename V::Lane(1)) - y);
}
template <class V>
FASTRNN_FN V tanh_slope(V y) {
  return fma(-y, y, V(typename V::Lane(1)));
}

}  // namespace FASTRNN_NAMESPACE
