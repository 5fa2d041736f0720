// Long short-term memory, torch gate order (i, f, g, o):  c' = f·c + i·g,  h' = o·tanh(c').
// Hochreiter & Schmidhuber 1997; forget gate of Gers 2000.
#pragma once

#include "simd/activations.h"

namespace FASTRNN_NAMESPACE {

struct lstm {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4;  // saved: i f g o
  static constexpr int kSplitFrom = kGates;
  static constexpr int kRecurrent = kGates, kSecond = 0, kParameters = 0;
  static constexpr bool kReadsHidden = false;

  template <class M, class V>
  FASTRNN_FN static void forward(const V (&wx)[4], const V (&rh)[4], const V (&s)[2], V (&s_new)[2], V (&saved)[4]) {
    const V i = M::sigmoid(wx[0] + rh[0]);
    const V f = M::sigmoid(wx[1] + rh[1]);
    const V g = M::tanh(wx[2] + rh[2]);
    const V o = M::sigmoid(wx[3] + rh[3]);
    s_new[1] = fma(f, s[1], i * g);
    s_new[0] = o * M::tanh(s_new[1]);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }

  template <class M, class V>
  FASTRNN_FN static void backward(const V (&saved)[4], const V (&s)[2], const V (&s_new)[2], const V (&ds_new)[2],
                                  V (&da)[4], V (&)[4], V (&ds)[2]) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V squashed = M::tanh(s_new[1]);  // recomputed: cheaper than saving another T·B·H values
    const V dc = fma(ds_new[0] * o, tanh_slope(squashed), ds_new[1]);
    da[0] = dc * g * sigmoid_slope(i);
    da[1] = dc * s[1] * sigmoid_slope(f);
    da[2] = dc * i * tanh_slope(g);
    da[3] = ds_new[0] * squashed * sigmoid_slope(o);
    ds[0] = V::zero();
    ds[1] = dc * f;
  }

  // Replaces the values that multiply ∂L/∂h only, for a step whose h has no gradient, because zero times NaN is NaN.
  template <class V>
  FASTRNN_FN static void leave_out_hidden(V (&saved)[4], V (&s_new)[2]) {
    saved[3] = s_new[1] = V::zero();
  }
};

}  // namespace FASTRNN_NAMESPACE
