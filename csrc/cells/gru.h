// Gated recurrent unit, reset after the product (torch, cuDNN), gate order (r, z, n):
//   n = tanh(W_n·x + b_n + r·(R_n·h + b_rn)),  h' = (1-z)·n + z·h.  Cho 2014, v1.
#pragma once

#include "simd/activations.h"

namespace FASTRNN_NAMESPACE {

struct gru {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4;  // saved: r z n rh_n
  static constexpr int kSplitFrom = 2;
  static constexpr int kRecurrent = kGates, kSecond = 0, kParameters = 0;
  static constexpr bool kReadsHidden = true;

  template <class M, class V>
  FASTRNN_FN static void forward(const V (&wx)[3], const V (&rh)[3], const V (&s)[1], V (&s_new)[1], V (&saved)[4]) {
    const V r = M::sigmoid(wx[0] + rh[0]);
    const V z = M::sigmoid(wx[1] + rh[1]);
    const V n = M::tanh(fma(r, rh[2], wx[2]));
    s_new[0] = fma(z, s[0] - n, n);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = rh[2];
  }

  template <class M, class V>
  FASTRNN_FN static void backward(const V (&saved)[4], const V (&s)[1], const V (&)[1], const V (&ds_new)[1],
                                  V (&da)[3], V (&drh)[3], V (&ds)[1]) {
    const V r = saved[0], z = saved[1], n = saved[2];
    const V dh = ds_new[0];
    da[2] = (dh - dh * z) * tanh_slope(n);
    da[1] = dh * (s[0] - n) * sigmoid_slope(z);
    da[0] = da[2] * saved[3] * sigmoid_slope(r);
    drh[2] = da[2] * r;
    ds[0] = dh * z;
  }
};

}  // namespace FASTRNN_NAMESPACE
