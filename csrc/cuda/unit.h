// One hidden unit of one row at one step: the element-wise stage that every driver shares. C is what T is computed in.
#pragma once

#include "cuda/args.h"
#include "cuda/device.h"
#include "math/activations.h"
#include "math/compute.h"

namespace fastrnn::cuda {

template <class T>
FASTRNN_FN Compute<T> get(const void* p, int64_t k) {
  return widen(static_cast<const T*>(p)[k]);
}
template <class T>
FASTRNN_FN void put(Compute<T> x, void* p, int64_t k) {
  narrow(x, static_cast<T*>(p) + k);
}

template <class Cell, class T>
struct Unit {
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int kInGates = K < G ? K : G, kExtra = K > G ? K - G : 0;
  using C = Compute<T>;
  using V = Vec<C>;

  // h is as wide as the projection makes it, the other states have H units.
  template <class Args>
  FASTRNN_FN static int64_t width(const Args& a, int s) {
    return s == 0 ? a.projected : a.hidden;
  }
  template <class Args>
  FASTRNN_FN static C initial(const Args& a, int s, int64_t b, int64_t u) {
    return a.initial[s] != nullptr ? get<T>(a.initial[s], b * width(a, s) + u) : C(0);
  }

  FASTRNN_FN static void load_input(const ForwardArgs& a, int64_t row, int64_t u, V (&wx)[G]) {
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) wx[g] = get<T>(a.gates, (row * G + g) * a.hidden + u);
  }

  // `rh`: R·h without its bias. `states` become those after the step.
  FASTRNN_FN static void forward(const ForwardArgs& a, int64_t row, int64_t u, const V (&wx)[G], V (&rh)[G],
                                 V (&states)[S]) {
    if (a.b_hh != nullptr) {
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) rh[g] = rh[g] + V(get<T>(a.b_hh, g * a.hidden + u));
    }
    V next[S], saved[K > 0 ? K : 1];
    Cell::template forward<Exact>(wx, rh, states, next, saved);
    if (a.training) {
      FASTRNN_UNROLL
      for (int k = 0; k < kInGates; ++k) put<T>(saved[k].v, a.gates, (row * G + k) * a.hidden + u);
      FASTRNN_UNROLL
      for (int k = 0; k < kExtra; ++k) put<T>(saved[G + k].v, a.extra, (row * kExtra + k) * a.hidden + u);
      FASTRNN_UNROLL
      for (int s = 1; s < S; ++s) static_cast<C*>(a.cells)[(row * (S - 1) + s - 1) * a.hidden + u] = next[s].v;
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) states[s] = next[s];
  }

  // State s of row b and unit u after the k-th step is `value`: leaves it where it has to be, and returns what the next
  // step begins with.
  FASTRNN_FN static C conclude(const ForwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    if (k + 1 == a.rows.steps) {
      put<T>(value, a.final_states[s], b * width(a, s) + u);
      return value;
    }
    return a.rows.anew(k + 1, b) ? initial(a, s, b, u) : value;
  }

  // The states before and after the k-th step of row b, as the cell's backward wants them.
  FASTRNN_FN static void load_states(const BackwardArgs& a, int64_t k, int64_t b, int64_t row, int64_t u,
                                     V (&before)[S], V (&after)[S]) {
    const bool continues = a.rows.continues(k, b);
    const int64_t previous = continues ? a.rows.row(a.rows.step(k - 1), b) : 0;
    // With a projection y holds what comes after it, and the cell reads no h.
    before[0] = after[0] = V::zero();
    if (!a.projection) {
      before[0] = continues ? get<T>(a.y, previous * a.hidden + u) : initial(a, 0, b, u);
      after[0] = get<T>(a.y, row * a.hidden + u);
    }
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) {
      const C* cells = static_cast<const C*>(a.cells);
      before[s] = continues ? cells[(previous * (S - 1) + s - 1) * a.hidden + u] : initial(a, s, b, u);
      after[s] = cells[(row * (S - 1) + s - 1) * a.hidden + u];
    }
  }

  // `grads`: of the states after the step; they become those of the states before it, less the path through rh, whose
  // gradient comes back in `drh`.
  FASTRNN_FN static void backward(const BackwardArgs& a, int64_t k, int64_t b, int64_t u, V (&grads)[S], V (&drh)[G]) {
    const int64_t row = a.rows.row(a.rows.step(k), b);
    V before[S], after[S], saved[K > 0 ? K : 1], da[G], ds[S];
    load_states(a, k, b, row, u, before, after);
    FASTRNN_UNROLL
    for (int i = 0; i < kInGates; ++i) saved[i] = get<T>(a.gates, (row * G + i) * a.hidden + u);
    FASTRNN_UNROLL
    for (int i = 0; i < kExtra; ++i) saved[G + i] = get<T>(a.extra, (row * kExtra + i) * a.hidden + u);
    Cell::template backward<Exact>(saved, before, after, grads, da, drh, ds);
    constexpr int kSplit = G - Cell::kSplitFrom;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      put<T>(da[g].v, a.da, (row * G + g) * a.hidden + u);
      if (g < Cell::kSplitFrom) {
        drh[g] = da[g];
      } else {
        put<T>(drh[g].v, a.drh, (row * kSplit + g - Cell::kSplitFrom) * a.hidden + u);
      }
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) grads[s] = ds[s];
  }
  // Where row b takes no k-th step but has memory for one.
  FASTRNN_FN static void no_step(const BackwardArgs& a, int64_t k, int64_t b, int64_t u) {
    const int64_t t = a.rows.step(k);
    if (!a.rows.exists(t, b)) return;
    constexpr int kSplit = G - Cell::kSplitFrom;
    const int64_t row = a.rows.row(t, b);
    for (int g = 0; g < G; ++g) put<T>(C(0), a.da, (row * G + g) * a.hidden + u);
    for (int g = 0; g < kSplit; ++g) put<T>(C(0), a.drh, (row * kSplit + g) * a.hidden + u);
  }

  // The gradient of state s after the k-th step, `value`, as the step before has to take it: what belongs to a restart
  // is put aside. k is the place of the step that has just been undone.
  FASTRNN_FN static C divert(const BackwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    if (k == 0 || !a.rows.anew(k, b)) return value;
    if (a.restarts[s] != nullptr) static_cast<C*>(a.restarts[s])[b * width(a, s) + u] += value;
    return C(0);
  }
  FASTRNN_FN static C final_gradient(const BackwardArgs& a, int s, int64_t b, int64_t u) {
    return a.grad_final[s] != nullptr ? get<T>(a.grad_final[s], b * width(a, s) + u) : C(0);
  }
  // ∂L/∂h of a step, out of what later steps gave (`value`) and the gradient of its output; cut, if there is a bound.
  FASTRNN_FN static C with_output(const BackwardArgs& a, int64_t row, int64_t u, C value) {
    if (a.grad_y != nullptr) value += get<T>(a.grad_y, row * a.projected + u);
    const C bound = static_cast<C>(a.clip);
    if (bound > 0 && value > bound) return bound;
    return bound > 0 && value < -bound ? -bound : value;  // a NaN stays one
  }
  FASTRNN_FN static void put_initial(const BackwardArgs& a, int s, int64_t b, int64_t u, C value) {
    if (a.grad_initial[s] == nullptr) return;
    const int64_t at = b * width(a, s) + u;
    if (a.restarts[s] != nullptr) value += static_cast<const C*>(a.restarts[s])[at];
    put<T>(value, a.grad_initial[s], at);
  }
};

}  // namespace fastrnn::cuda
