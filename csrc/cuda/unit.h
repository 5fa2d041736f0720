// One hidden unit of one row at one step: the element-wise stage, shared by all drivers. C is the compute dtype of T.
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

// C++ has no empty arrays.
constexpr int or_one(int n) { return n > 0 ? n : 1; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

// Index: type of offsets within a step
template <class Cell, class T, class Index>
struct Unit {
  static constexpr int G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved, Q = Cell::kParameters;
  static constexpr int R = Cell::kRecurrent, R2 = Cell::kSecond, R1 = R - R2;
  static constexpr int kInGates = K < G ? K : G, kExtra = K > G ? K - G : 0, kSplit = R - Cell::kSplitFrom;
  static constexpr bool kExtended = Q > 0 || R2 > 0;  // the cell's functions have all arguments
  using C = Compute<T>;
  using V = Vec<C>;
  using Row = StepRow<Index>;

  // Most numbers per unit and row in any array of a step
  static constexpr int kWidest = larger(larger(G, kExtra), larger(larger(R, Q), S));

  // Inputs of a step, products with their biases; an unused array has one element.
  struct Inputs {
    V wx[G], rh[or_one(R1)], rm[or_one(R2)], parameters[or_one(Q)];
  };
  // The same in the storage dtype, for values independent of other units: can be loaded long before their use
  struct Waiting {
    T wx[G];
  };
  // Inputs of its gradient: the states before and after it; `vector`: the operand of the second product
  struct Known {
    V saved[or_one(K)], before[S], after[S], vector[1], parameters[or_one(Q)];
  };
  // The same in the storage dtype, with ∂L/∂y
  struct WaitingKnown {
    T saved[or_one(K)], h_before, h_after, vector, grad_y;
    C before[S], after[S];  // except h
  };

  template <class Args>
  FASTRNN_FN static Index hidden(const Args& a) {
    return static_cast<Index>(a.hidden);
  }
  // h has the width of the projection, the other states have H units.
  template <class Args>
  FASTRNN_FN static Index width(const Args& a, int s) {
    return static_cast<Index>(s == 0 ? a.projected : a.hidden);
  }
  template <class Args>
  FASTRNN_FN static C initial(const Args& a, int s, Index b, Index u) {
    return widen(first(a, a.initial, s, b, u));
  }
  // The initial states or the restart states
  template <class Args>
  FASTRNN_FN static T first(const Args& a, const void* const* states, int s, Index b, Index u) {
    return states[s] != nullptr ? static_cast<const T*>(states[s])[b * width(a, s) + u] : T{};
  }

  template <class Args>
  FASTRNN_FN static void load_parameters(const Args& a, Index u, V (&parameters)[or_one(Q)]) {
    FASTRNN_UNROLL
    for (int q = 0; q < Q; ++q) parameters[q] = get<T>(a.parameters, q * hidden(a) + u);
  }
  FASTRNN_FN static void fetch(const ForwardArgs& a, const Row& row, Index u, Waiting& out) {
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) out.wx[g] = *row.at(static_cast<const T*>(a.gates), G, g, hidden(a), u);
  }
  // The caller fills in the products and parameters.
  FASTRNN_FN static void load_input(const Waiting& from, Inputs& in) {
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) in.wx[g] = widen(from.wx[g]);
  }
  FASTRNN_FN static void load_input(const ForwardArgs& a, const Row& row, Index u, Inputs& in) {
    Waiting waiting;
    fetch(a, row, u, waiting);
    load_input(waiting, in);
    load_parameters(a, u, in.parameters);
  }
  // Adds the biases to `count` products, starting with number `first`.
  FASTRNN_FN static void add_bias(const ForwardArgs& a, Index u, int first, int count, V* products) {
    if (a.b_hh == nullptr) return;
    FASTRNN_UNROLL
    for (int g = 0; g < count; ++g) products[g] = products[g] + V(get<T>(a.b_hh, (first + g) * hidden(a) + u));
  }

  // The operand of the second product; `in` without rm
  FASTRNN_FN static V inner(Inputs& in, const V (&states)[S]) {
    V vector[1];
    Cell::template inner<Exact>(in.wx, in.rh, states, in.parameters, vector);
    return vector[0];
  }

  // Results of a step: the states after it, and the values saved for backward
  struct Outcome {
    V next[S], saved[or_one(K)];
  };
  FASTRNN_FN static void forward(const Inputs& in, const V (&states)[S], Outcome& out) {
    if constexpr (kExtended) {
      Cell::template forward<Exact>(in.wx, in.rh, in.rm, states, in.parameters, out.next, out.saved);
    } else {
      Cell::template forward<Exact>(in.wx, in.rh, states, out.next, out.saved);
    }
  }
  FASTRNN_FN static void save(const ForwardArgs& a, const Row& row, Index u, const Outcome& out) {
    if (!a.training) return;
    FASTRNN_UNROLL
    for (int k = 0; k < kInGates; ++k) narrow(out.saved[k].v, row.at(static_cast<T*>(a.gates), G, k, hidden(a), u));
    FASTRNN_UNROLL
    for (int k = 0; k < kExtra; ++k) {
      narrow(out.saved[G + k].v, row.at(static_cast<T*>(a.extra), kExtra, k, hidden(a), u));
    }
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) *row.at(static_cast<C*>(a.cells), S - 1, s - 1, hidden(a), u) = out.next[s].v;
  }
  FASTRNN_FN static void put_output(const ForwardArgs& a, const Row& row, Index u, C value) {
    narrow(value, row.at(static_cast<T*>(a.y), 1, 0, width(a, 0), u));
  }
  FASTRNN_FN static void put_unprojected(const ForwardArgs& a, const Row& row, Index u, C value) {
    if (a.unprojected != nullptr) narrow(value, row.at(static_cast<T*>(a.unprojected), 1, 0, hidden(a), u));
  }

  // Stores `value`, the state s of row b and unit u after a step, where required, and returns the value that the next
  // step starts from. `last`: it is the last step; `anew`: the next one begins a later segment.
  FASTRNN_FN static C conclude(const ForwardArgs& a, int s, bool last, bool anew, Index b, Index u, C value) {
    if (last) {
      put<T>(value, a.final_states[s], b * width(a, s) + u);
      return value;
    }
    return anew ? widen(first(a, a.restart, s, b, u)) : value;
  }

  // Results of the k-th step of a row. `continues`: it started from the result of the previous step, at `previous`;
  // `anew`: it began a later segment.
  FASTRNN_FN static void fetch(const BackwardArgs& a, const Row& row, const Row& previous, bool continues, bool anew,
                               Index u, WaitingKnown& out) {
    const void* const* states = anew ? a.restart : a.initial;
    const T* y = static_cast<const T*>(a.y);
    // With a projection y holds the projected h, and the cell does not read h.
    out.h_before = out.h_after = T{};
    if (!a.projection) {
      out.h_before = continues ? *previous.at(y, 1, 0, hidden(a), u) : first(a, states, 0, row.b, u);
      out.h_after = *row.at(y, 1, 0, hidden(a), u);
    }
    const C* cells = static_cast<const C*>(a.cells);
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) {
      out.before[s] =
          continues ? *previous.at(cells, S - 1, s - 1, hidden(a), u) : widen(first(a, states, s, row.b, u));
      out.after[s] = *row.at(cells, S - 1, s - 1, hidden(a), u);
    }
    FASTRNN_UNROLL
    for (int i = 0; i < kInGates; ++i) out.saved[i] = *row.at(static_cast<const T*>(a.gates), G, i, hidden(a), u);
    FASTRNN_UNROLL
    for (int i = 0; i < kExtra; ++i) {
      out.saved[G + i] = *row.at(static_cast<const T*>(a.extra), kExtra, i, hidden(a), u);
    }
    if constexpr (R2 > 0) out.vector = *row.at(static_cast<const T*>(a.unprojected), 1, 0, hidden(a), u);
  }
  // ∂L/∂y; needed here only by drivers that add it in the same kernel.
  FASTRNN_FN static void fetch_output(const BackwardArgs& a, const Row& row, Index u, WaitingKnown& out) {
    out.grad_y = a.grad_y != nullptr ? *row.at(static_cast<const T*>(a.grad_y), 1, 0, width(a, 0), u) : T{};
  }

  // The caller fills in the parameters.
  FASTRNN_FN static void load_known(const WaitingKnown& from, Known& known) {
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
  }
  FASTRNN_FN static void load_known(const BackwardArgs& a, int64_t k, const Row& row, Index u, Known& known) {
    WaitingKnown waiting;
    const bool continues = a.rows.continues(k, row.b);
    const Row previous{continues ? a.rows.first_row(a.rows.step(k - 1)) : 0, row.b};
    fetch(a, row, previous, continues, k > 0 && a.rows.anew(k, row.b), u, waiting);
    load_known(waiting, known);
    load_parameters(a, u, known.parameters);
  }

  // The gradient of the second product's result, from that of the states after the step
  FASTRNN_FN static void inner_gradient(const BackwardArgs& a, int64_t k, const Row& row, Index u, const V (&grads)[S],
                                        V (&drm)[or_one(R2)]) {
    Known known;
    load_known(a, k, row, u, known);
    Cell::template inner_gradient<Exact>(known.saved, known.before, known.after, known.vector, known.parameters, grads,
                                         drm);
  }

  // Results of a backward step except the states: ∂L/∂a, ∂L/∂rh, ∂L/∂parameters
  struct Gradients {
    V da[G], drh[or_one(R)], dparameters[or_one(Q)];
  };
  // `grads`: of the states after the step; on return of those before it, without the path through rh. `dm`: of the
  // second product's operand.
  FASTRNN_FN static void backward(const Known& known, C dm, V (&grads)[S], Gradients& out) {
    V ds[S];
    if constexpr (kExtended) {
      const V dvector[1] = {dm};
      Cell::template backward<Exact>(known.saved, known.before, known.after, known.vector, known.parameters, grads,
                                     dvector, out.da, out.drh, ds, out.dparameters);
    } else {
      Cell::template backward<Exact>(known.saved, known.before, known.after, grads, out.da, out.drh, ds);
    }
    FASTRNN_UNROLL
    for (int g = 0; g < R; ++g) {
      if (g < Cell::kSplitFrom) out.drh[g] = out.da[g];
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) grads[s] = ds[s];
  }
  FASTRNN_FN static void put_gradients(const BackwardArgs& a, const Row& row, Index u, const Gradients& out) {
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) narrow(out.da[g].v, row.at(static_cast<T*>(a.da), G, g, hidden(a), u));
    FASTRNN_UNROLL
    for (int g = 0; g < kSplit; ++g) {
      narrow(out.drh[Cell::kSplitFrom + g].v, row.at(static_cast<T*>(a.drh), kSplit, g, hidden(a), u));
    }
    FASTRNN_UNROLL
    for (int q = 0; q < Q; ++q) {
      narrow(out.dparameters[q].v, row.at(static_cast<T*>(a.dparameters), Q, q, hidden(a), u));
    }
  }
  // For a row that is inactive at a step but has memory for it
  FASTRNN_FN static void no_step(const BackwardArgs& a, const Row& row, Index u) {
    for (int g = 0; g < G; ++g) narrow(C(0), row.at(static_cast<T*>(a.da), G, g, hidden(a), u));
    for (int g = 0; g < kSplit; ++g) narrow(C(0), row.at(static_cast<T*>(a.drh), kSplit, g, hidden(a), u));
    for (int q = 0; q < Q; ++q) narrow(C(0), row.at(static_cast<T*>(a.dparameters), Q, q, hidden(a), u));
  }

  // Returns the gradient of state s for the previous step: `value`, or zero if the step began a later segment; then
  // `value` belongs to a restart state and is stored.
  FASTRNN_FN static C divert(const BackwardArgs& a, int s, bool anew, Index b, Index u, C value) {
    if (!anew) return value;
    if (a.restarts[s] != nullptr) static_cast<C*>(a.restarts[s])[b * width(a, s) + u] += value;
    return C(0);
  }
  // Store the gradient reaching state s of a row after its step from later steps, if requested.
  FASTRNN_FN static void store_later(const BackwardArgs& a, int s, const Row& row, bool active, Index u, C value) {
    if (a.later[s] == nullptr) return;
    *row.at(static_cast<C*>(a.later[s]), 1, 0, width(a, s), u) = active ? value : C(0);
  }
  FASTRNN_FN static C final_gradient(const BackwardArgs& a, int s, Index b, Index u) {
    return a.grad_final[s] != nullptr ? get<T>(a.grad_final[s], b * width(a, s) + u) : C(0);
  }
  // ∂L/∂h of a step, from that of later steps (`value`) and of its output; clipped if requested
  FASTRNN_FN static C with_output(const BackwardArgs& a, const Row& row, Index u, C value) {
    if (a.grad_y != nullptr) value += widen(*row.at(static_cast<const T*>(a.grad_y), 1, 0, width(a, 0), u));
    return clipped(a, value);
  }
  FASTRNN_FN static C clipped(const BackwardArgs& a, C value) {
    const C bound = static_cast<C>(a.clip);
    if (bound > 0 && value > bound) return bound;
    return bound > 0 && value < -bound ? -bound : value;  // NaN stays NaN
  }
  FASTRNN_FN static void put_hidden_gradient(const BackwardArgs& a, const Row& row, Index u, C value) {
    if (a.dh != nullptr) narrow(value, row.at(static_cast<T*>(a.dh), 1, 0, width(a, 0), u));
  }
  FASTRNN_FN static void put_initial(const BackwardArgs& a, int s, Index b, Index u, C value) {
    if (a.grad_initial[s] == nullptr) return;
    const Index at = b * width(a, s) + u;
    if (a.restarts[s] != nullptr && !a.own_restart) value += static_cast<const C*>(a.restarts[s])[at];
    put<T>(value, a.grad_initial[s], at);
  }
};

}  // namespace fastrnn::cuda
