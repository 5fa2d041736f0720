// Elman recurrent network with relu:  h' = max(0, W·x + b + R·h + b_r).  Elman 1990.
#pragma once

#include "simd/activations.h"

namespace FASTRNN_NAMESPACE {

struct rnn_relu {
  static constexpr int kGates = 1, kStates = 1, kSaved = 0;
  static constexpr int kSplitFrom = kGates;
  static constexpr int kRecurrent = kGates, kSecond = 0, kParameters = 0;
  static constexpr bool kReadsHidden = true;

  template <class M, class V>
  FASTRNN_FN static void forward(const V (&wx)[1], const V (&rh)[1], const V (&)[1], V (&s_new)[1], V (&)[1]) {
    s_new[0] = max(V::zero(), wx[0] + rh[0]);  // this order of the arguments propagates NaN
  }

  template <class M, class V>
  FASTRNN_FN static void backward(const V (&)[1], const V (&)[1], const V (&s_new)[1], const V (&ds_new)[1], V (&da)[1],
                                  V (&)[1], V (&ds)[1]) {
    da[0] = where_not_positive(s_new[0], V::zero(), ds_new[0]);
    ds[0] = V::zero();
  }
};

}  // namespace FASTRNN_NAMESPACE
