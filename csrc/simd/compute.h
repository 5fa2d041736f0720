// Compute dtype of each storage dtype, and conversion of single numbers between the two
#pragma once

#include "simd/half.h"

namespace FASTRNN_NAMESPACE {

// The compute dtype of a storage dtype
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
