// Which format a storage format is computed in, and single numbers between the two.
#pragma once

#include "simd/half.h"

namespace FASTRNN_NAMESPACE {

// The format that a storage format is computed in.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

FASTRNN_FN float widen(float x) { return x; }
FASTRNN_FN double widen(double x) { return x; }
FASTRNN_FN void narrow(float x, float* p) { *p = x; }
FASTRNN_FN void narrow(double x, double* p) { *p = x; }
FASTRNN_FN void narrow(float x, BFloat16* p) { *p = round_bfloat16(x); }
FASTRNN_FN void narrow(float x, Float16* p) { *p = round_float16(x); }

}  // namespace FASTRNN_NAMESPACE
