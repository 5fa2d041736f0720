// One hidden unit of one row at one step: the element-wise stage that every driver shares. C is what T is computed in.
#pragma once

#include "cuda/args.h"
#include "cuda/device.h"
#include "simd/activations.h"
#include "simd/compute.h"

namespace fastrnn::cuda {

template <class T>
FASTRNN_FN Compute<T> get(const void* p, int64_t k) {
  return widen(static_cast<const T*>(p)[k]);
}
template <class T>
FASTRNN_FN void put(Compute<T> x, void* p, int64_t k) {
  narrow(x, static_cast<T*>(p) + k);
}

// No array has no element.
constexpr int or_one(int n) { return n > 0 ? n : 1; }

template <class Cell, class T>
struct Unit {
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, Q = Cell::kParameters;
  static constexpr int R = Cell::kRecurrent, R2 = Cell::kSecond, R1 = R - R2;
  static constexpr int kInGates = K < G ? K : G, kExtra = K > G ? K - G : 0, kSplit = R - Cell::kSplitFrom;
  static constexpr bool kExtended = Q > 0 || R2 > 0;  // the cell's functions take all arrays
  using C = Compute<T>;
  using V = Vec<C>;

  // What a step is computed from; an array that a cell has no use for has one element.
  struct Inputs {
    V wx[G], rh[or_one(R1)], rm[or_one(R2)], parameters[or_one(Q)];
  };
  // The same in memory's format, of what no other unit has a part in: can be read long before it is used.
  struct Waiting {
    T wx[G];
  };
  // What its gradient is computed from: the states before and after it, `vector`: what the second product multiplied.
  struct Known {
    V saved[or_one(K)], before[S], after[S], vector[1], parameters[or_one(Q)];
  };
  // The same in memory's format; with ∂L/∂y.
  struct WaitingKnown {
    T saved[or_one(K)], h_before, h_after, vector, grad_y;
    C before[S], after[S];  // but h
  };

  // h is as wide as the projection makes it, the other states have H units.
  template <class Args>
  FASTRNN_FN static int64_t width(const Args& a, int s) {
    return s == 0 ? a.projected : a.hidden;
  }
  template <class Args>
  FASTRNN_FN static C initial(const Args& a, int s, int64_t b, int64_t u) {
    return widen(first(a, a.initial, s, b, u));
  }
  // Of the initial states or those of a restart.
  template <class Args>
  FASTRNN_FN static T first(const Args& a, const void* const* states, int s, int64_t b, int64_t u) {
    return states[s] != nullptr ? static_cast<const T*>(states[s])[b * width(a, s) + u] : T{};
  }

  template <class Args>
  FASTRNN_FN static void load_parameters(const Args& a, int64_t u, V (&parameters)[or_one(Q)]) {
    FASTRNN_UNROLL
    for (int q = 0; q < Q; ++q) parameters[q] = get<T>(a.parameters, q * a.hidden + u);
  }
  FASTRNN_FN static void fetch(const ForwardArgs& a, int64_t row, int64_t u, Waiting& out) {
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) out.wx[g] = static_cast<const T*>(a.gates)[(row * G + g) * a.hidden + u];
  }
  // All but the products: rh and rm are for the caller to fill in, without their biases.
  FASTRNN_FN static void load_input(const ForwardArgs& a, int64_t u, const Waiting& from, Inputs& in) {
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) in.wx[g] = widen(from.wx[g]);
    load_parameters(a, u, in.parameters);
  }
  FASTRNN_FN static void load_input(const ForwardArgs& a, int64_t row, int64_t u, Inputs& in) {
    Waiting waiting;
    fetch(a, row, u, waiting);
    load_input(a, u, waiting, in);
  }
  // Adds the biases to `count` products from the `first` one on.
  FASTRNN_FN static void add_bias(const ForwardArgs& a, int64_t u, int first, int count, V* products) {
    if (a.b_hh == nullptr) return;
    FASTRNN_UNROLL
    for (int g = 0; g < count; ++g) products[g] = products[g] + V(get<T>(a.b_hh, (first + g) * a.hidden + u));
  }

  // What the second product multiplies; `in` without rm.
  FASTRNN_FN static V inner(const ForwardArgs& a, int64_t u, Inputs& in, const V (&states)[S]) {
    add_bias(a, u, 0, R1, in.rh);
    V vector[1];
    Cell::template inner<Exact>(in.wx, in.rh, states, in.parameters, vector);
    return vector[0];
  }

  // `states` become those after the step.
  FASTRNN_FN static void forward(const ForwardArgs& a, int64_t row, int64_t u, Inputs& in, V (&states)[S]) {
    add_bias(a, u, 0, R1, in.rh);
    add_bias(a, u, R1, R2, in.rm);
    V next[S], saved[or_one(K)];
    if constexpr (kExtended) {
      Cell::template forward<Exact>(in.wx, in.rh, in.rm, states, in.parameters, next, saved);
    } else {
      Cell::template forward<Exact>(in.wx, in.rh, states, next, saved);
    }
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
    return a.rows.anew(k + 1, b) ? widen(first(a, a.restart, s, b, u)) : value;
  }

  // What the k-th step of row b left, at `row` of memory.
  FASTRNN_FN static void fetch(const BackwardArgs& a, int64_t k, int64_t b, int64_t row, int64_t u, WaitingKnown& out) {
    const bool continues = a.rows.continues(k, b);
    const int64_t previous = continues ? a.rows.row(a.rows.step(k - 1), b) : 0;
    const void* const* states = k > 0 && a.rows.anew(k, b) ? a.restart : a.initial;
    const T *y = static_cast<const T*>(a.y), *gates = static_cast<const T*>(a.gates);
    // With a projection y holds what comes after it, and the cell reads no h.
    out.h_before = out.h_after = T{};
    if (!a.projection) {
      out.h_before = continues ? y[previous * a.hidden + u] : first(a, states, 0, b, u);
      out.h_after = y[row * a.hidden + u];
    }
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) {
      const C* cells = static_cast<const C*>(a.cells);
      out.before[s] = continues ? cells[(previous * (S - 1) + s - 1) * a.hidden + u] : widen(first(a, states, s, b, u));
      out.after[s] = cells[(row * (S - 1) + s - 1) * a.hidden + u];
    }
    FASTRNN_UNROLL
    for (int i = 0; i < kInGates; ++i) out.saved[i] = gates[(row * G + i) * a.hidden + u];
    FASTRNN_UNROLL
    for (int i = 0; i < kExtra; ++i) {
      out.saved[G + i] = static_cast<const T*>(a.extra)[(row * kExtra + i) * a.hidden + u];
    }
    if constexpr (R2 > 0) out.vector = static_cast<const T*>(a.unprojected)[row * a.hidden + u];
  }
  // ∂L/∂y; only the drivers that add it in the same kernel need it here.
  FASTRNN_FN static void fetch_output(const BackwardArgs& a, int64_t row, int64_t u, WaitingKnown& out) {
    out.grad_y = a.grad_y != nullptr ? static_cast<const T*>(a.grad_y)[row * a.projected + u] : T{};
  }

  FASTRNN_FN static void load_known(const BackwardArgs& a, int64_t u, const WaitingKnown& from, Known& known) {
    known.before[0] = widen(from.h_before);
    known.after[0] = widen(from.h_after);
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) {
      known.before[s] = from.before[s];
      known.after[s] = from.after[s];
    }
    FASTRNN_UNROLL
    for (int i = 0; i < K; ++i) known.saved[i] = widen(from.saved[i]);
    if constexpr (R2 > 0) known.vector[0] = widen(from.vector);
    load_parameters(a, u, known.parameters);
  }
  FASTRNN_FN static void load_known(const BackwardArgs& a, int64_t k, int64_t b, int64_t row, int64_t u, Known& known) {
    WaitingKnown waiting;
    fetch(a, k, b, row, u, waiting);
    load_known(a, u, waiting, known);
  }

  // The gradient of the second product's result, from that of the states after the step.
  FASTRNN_FN static void inner_gradient(const BackwardArgs& a, int64_t k, int64_t b, int64_t u, const V (&grads)[S],
                                        V (&drm)[or_one(R2)]) {
    Known known;
    load_known(a, k, b, a.rows.row(a.rows.step(k), b), u, known);
    Cell::template inner_gradient<Exact>(known.saved, known.before, known.after, known.vector, known.parameters, grads,
                                         drm);
  }

  // `grads`: of the states after the step; they become those of the states before it, less the path through rh, whose
  // gradient comes back in `drh`. `dm`: of what the second product multiplied.
  FASTRNN_FN static void backward(const BackwardArgs& a, int64_t k, int64_t b, int64_t u, C dm, V (&grads)[S],
                                  V (&drh)[or_one(R)]) {
    const int64_t row = a.rows.row(a.rows.step(k), b);
    Known known;
    load_known(a, k, b, row, u, known);
    backward(a, row, u, known, dm, grads, drh);
  }
  FASTRNN_FN static void backward(const BackwardArgs& a, int64_t row, int64_t u, const Known& known, C dm,
                                  V (&grads)[S], V (&drh)[or_one(R)]) {
    V da[G], ds[S];
    if constexpr (kExtended) {
      const V dvector[1] = {dm};
      V dparameters[or_one(Q)];
      Cell::template backward<Exact>(known.saved, known.before, known.after, known.vector, known.parameters, grads,
                                     dvector, da, drh, ds, dparameters);
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) put<T>(dparameters[q].v, a.dparameters, (row * Q + q) * a.hidden + u);
    } else {
      Cell::template backward<Exact>(known.saved, known.before, known.after, grads, da, drh, ds);
    }
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) put<T>(da[g].v, a.da, (row * G + g) * a.hidden + u);
    FASTRNN_UNROLL
    for (int g = 0; g < R; ++g) {
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
    const int64_t row = a.rows.row(t, b);
    for (int g = 0; g < G; ++g) put<T>(C(0), a.da, (row * G + g) * a.hidden + u);
    for (int g = 0; g < kSplit; ++g) put<T>(C(0), a.drh, (row * kSplit + g) * a.hidden + u);
    for (int q = 0; q < Q; ++q) put<T>(C(0), a.dparameters, (row * Q + q) * a.hidden + u);
  }

  // The gradient of state s after the k-th step, `value`, as the step before has to take it: what belongs to a restart
  // is put aside. k is the place of the step that has just been undone.
  FASTRNN_FN static C divert(const BackwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    if (k == 0 || !a.rows.anew(k, b)) return value;
    if (a.restarts[s] != nullptr) static_cast<C*>(a.restarts[s])[b * width(a, s) + u] += value;
    return C(0);
  }
  // Store the gradient reaching state s of row b after its k-th step from later steps, if requested.
  FASTRNN_FN static void store_later(const BackwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    if (a.later[s] == nullptr) return;
    const int64_t t = a.rows.step(k);
    if (!a.rows.exists(t, b)) return;
    const int64_t at = a.rows.row(t, b) * width(a, s) + u;
    static_cast<C*>(a.later[s])[at] = a.rows.active(t, b) ? value : C(0);
  }
  FASTRNN_FN static C final_gradient(const BackwardArgs& a, int s, int64_t b, int64_t u) {
    return a.grad_final[s] != nullptr ? get<T>(a.grad_final[s], b * width(a, s) + u) : C(0);
  }
  // ∂L/∂h of a step, out of what later steps gave (`value`) and the gradient of its output; cut, if there is a bound.
  FASTRNN_FN static C with_output(const BackwardArgs& a, int64_t row, int64_t u, C value) {
    if (a.grad_y != nullptr) value += get<T>(a.grad_y, row * a.projected + u);
    return bounded(a, value);
  }
  FASTRNN_FN static C bounded(const BackwardArgs& a, C value) {
    const C bound = static_cast<C>(a.clip);
    if (bound > 0 && value > bound) return bound;
    return bound > 0 && value < -bound ? -bound : value;  // a NaN stays one
  }
  FASTRNN_FN static void put_initial(const BackwardArgs& a, int s, int64_t b, int64_t u, C value) {
    if (a.grad_initial[s] == nullptr) return;
    const int64_t at = b * width(a, s) + u;
    if (a.restarts[s] != nullptr && !a.own_restart) value += static_cast<const C*>(a.restarts[s])[at];
    put<T>(value, a.grad_initial[s], at);
  }
};

}  // namespace fastrnn::cuda
