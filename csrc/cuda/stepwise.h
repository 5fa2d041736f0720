// Element-wise kernels of the step-wise driver: at every step a cuBLAS product, then one of these. A thread handles one
// unit of one row. With a projection, or in a cell with two products, there are two products and two kernels per step;
// a cell without products runs all its steps in one kernel.
#pragma once

#include "cuda/unit.h"

namespace fastrnn::cuda {

// The thread's row and its unit among `width`, or none. A block handles one row.
struct Place {
  int64_t b, u;
  bool none;

  FASTRNN_DEVICE Place(Block& block, int64_t width)
      : b(block.x()), u(block.y() * block.threads() + block.thread()), none(u >= width) {}
};

template <class Cell, class T>
struct Stepwise {
  using U = Unit<Cell, T, int64_t>;
  using Row = typename U::Row;
  using C = typename U::C;
  using V = typename U::V;
  static constexpr int S = U::S, R = U::R, R2 = U::R2, R1 = U::R1, kSecond = R2;

  template <class Args>
  static FASTRNN_FN C& state(const Args& a, int s, int64_t b, int64_t u) {
    return static_cast<C*>(a.memory.states[s])[b * U::width(a, s) + u];
  }

  template <class Args>
  static FASTRNN_FN Row row_of(const Args& a, int64_t t, int64_t b) {
    return {a.rows.first_row(t), b};
  }
  static FASTRNN_FN C conclude(const ForwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    const bool last = k + 1 == a.rows.steps;
    return U::conclude(a, s, last, !last && a.rows.anew(k + 1, b), b, u, value);
  }

  // `states` become those after the step.
  static FASTRNN_FN void step_forward(const ForwardArgs& a, const Row& row, int64_t u, const typename U::Inputs& in,
                                      V (&states)[S]) {
    typename U::Outcome out;
    U::forward(in, states, out);
    U::save(a, row, u, out);
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) states[s] = out.next[s];
  }

  // Stores state s of row b for the next step, and h for the next product.
  static FASTRNN_FN void settle(const ForwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    const C next = conclude(a, s, k, b, u, value);
    state(a, s, b, u) = next;
    if (s == 0) put<T>(next, a.memory.operand, b * a.projected + u);
  }

  static FASTRNN_FN void load_product(const ForwardArgs& a, int64_t b, int64_t u, typename U::Inputs& in) {
    const C* product = static_cast<const C*>(a.memory.product);
    for (int g = 0; g < R1; ++g) in.rh[g] = product[(b * R1 + g) * a.hidden + u];
    U::add_bias(a, u, 0, R1, in.rh);
  }

  // The initial states, for the widest state
  struct Begin {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t) {
      const int64_t widest = a.projected > a.hidden ? a.projected : a.hidden;
      const Place at(block, widest);
      if (at.none) return;
      for (int s = 0; s < S; ++s) {
        if (at.u >= U::width(a, s)) continue;
        const C value = U::initial(a, s, at.b, at.u);
        state(a, s, at.b, at.u) = value;
        if (s == 0) put<T>(value, a.memory.operand, at.b * a.projected + at.u);
      }
    }
  };

  // After R·h
  struct Forward {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, u = at.u;
      const bool projection = a.memory.inner != nullptr;
      const Row row = row_of(a, t, b);
      V states[S];
      for (int s = 0; s < S; ++s) states[s] = s == 0 && projection ? C(0) : state(a, s, b, u);
      if (a.rows.active(t, b)) {
        typename U::Inputs in;
        U::load_input(a, row, u, in);
        load_product(a, b, u, in);
        step_forward(a, row, u, in, states);
        if (projection) put<T>(states[0].v, a.memory.inner, b * a.hidden + u);
        U::put_unprojected(a, row, u, states[0].v);
        if (!projection) U::put_output(a, row, u, states[0].v);
      } else if (a.rows.exists(t, b)) {
        if (!projection) U::put_output(a, row, u, C(0));
        U::put_unprojected(a, row, u, C(0));
      }
      // From 0: a non-constant index would put the states into local memory.
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) {
        if (s > 0 || !projection) settle(a, s, k, b, u, states[s].v);
      }
    }
  };

  // After the projection
  struct Project {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.projected);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, p = at.u;
      C value = state(a, 0, b, p);
      if (a.rows.active(t, b)) {
        value = static_cast<const C*>(a.memory.outer)[b * a.projected + p];
        U::put_output(a, row_of(a, t, b), p, value);
      } else if (a.rows.exists(t, b)) {
        U::put_output(a, row_of(a, t, b), p, C(0));
      }
      settle(a, 0, k, b, p, value);
    }
  };

  // After the first of two products: the operand of the second one
  struct Inner {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, u = at.u;
      const Row row = row_of(a, t, b);
      C vector(0);
      if (a.rows.active(t, b)) {
        V states[S];
        for (int s = 0; s < S; ++s) states[s] = state(a, s, b, u);
        typename U::Inputs in;
        U::load_input(a, row, u, in);
        load_product(a, b, u, in);
        vector = U::inner(in, states).v;
      }
      put<T>(vector, a.memory.inner, b * a.hidden + u);
      if (a.rows.exists(t, b)) U::put_unprojected(a, row, u, vector);
    }
  };

  // After the second product
  struct Second {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, u = at.u;
      V states[S];
      for (int s = 0; s < S; ++s) states[s] = state(a, s, b, u);
      if (a.rows.active(t, b)) {
        const Row row = row_of(a, t, b);
        typename U::Inputs in;
        U::load_input(a, row, u, in);
        load_product(a, b, u, in);
        const C* second = static_cast<const C*>(a.memory.outer);
        for (int g = 0; g < R2; ++g) in.rm[g] = second[(b * R2 + g) * a.hidden + u];
        U::add_bias(a, u, R1, R2, in.rm);
        step_forward(a, row, u, in, states);
        U::put_output(a, row, u, states[0].v);
      } else if (a.rows.exists(t, b)) {
        U::put_output(a, row_of(a, t, b), u, C(0));
      }
      for (int s = 0; s < S; ++s) settle(a, s, k, b, u, states[s].v);
    }
  };

  // All steps of a cell without products
  struct Whole {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t b = at.b, u = at.u;
      V states[S];
      for (int s = 0; s < S; ++s) states[s] = U::initial(a, s, b, u);
      for (int64_t k = 0; k < a.rows.steps; ++k) {
        const int64_t t = a.rows.step(k);
        if (a.rows.active(t, b)) {
          const Row row = row_of(a, t, b);
          typename U::Inputs in;
          U::load_input(a, row, u, in);
          step_forward(a, row, u, in, states);
          U::put_output(a, row, u, states[0].v);
        } else if (a.rows.exists(t, b)) {
          U::put_output(a, row_of(a, t, b), u, C(0));
        }
        for (int s = 0; s < S; ++s) states[s] = conclude(a, s, k, b, u, states[s].v);
      }
    }
  };

  struct BeginBackward {
    using Args = BackwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t) {
      const int64_t widest = a.projected > a.hidden ? a.projected : a.hidden;
      const Place at(block, widest);
      if (at.none) return;
      for (int s = 0; s < S; ++s) {
        if (at.u < U::width(a, s)) state(a, s, at.b, at.u) = U::final_gradient(a, s, at.b, at.u);
      }
    }
  };

  // The gradient of state s after the k-th step, summed over all later paths
  static FASTRNN_FN C gathered(const BackwardArgs& a, int s, int64_t k, int64_t b, int64_t u) {
    C value = state(a, s, b, u);
    if (k + 1 < a.rows.steps) {
      if (R1 > 0 && s == 0) value += static_cast<const C*>(a.memory.product)[b * a.projected + u];
      value = U::divert(a, s, a.rows.anew(k + 1, b), b, u, value);
    }
    store_later(a, s, k, b, u, value);
    return value;
  }
  static FASTRNN_FN void store_later(const BackwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    const int64_t t = a.rows.step(k);
    if (a.rows.exists(t, b)) U::store_later(a, s, row_of(a, t, b), a.rows.active(t, b), u, value);
  }

  // ∂L/∂h of the k-th step, including that of its output
  static FASTRNN_FN C output_too(const BackwardArgs& a, int64_t k, int64_t b, int64_t u, C value) {
    const int64_t t = a.rows.step(k);
    if (!a.rows.exists(t, b)) return value;
    const bool active = a.rows.active(t, b);
    const Row row = row_of(a, t, b);
    if (active) value = U::with_output(a, row, u, value);
    U::put_hidden_gradient(a, row, u, active ? value : C(0));
    return value;
  }
  // One step of a row: its gradients, or zeros if it is inactive
  static FASTRNN_FN void step_backward(const BackwardArgs& a, int64_t k, int64_t b, int64_t u, C dm, V (&grads)[S],
                                       V (&drh)[or_one(R)]) {
    const int64_t t = a.rows.step(k);
    const Row row = row_of(a, t, b);
    if (a.rows.active(t, b)) {
      typename U::Known known;
      U::load_known(a, k, row, u, known);
      typename U::Gradients out;
      U::backward(known, dm, grads, out);
      U::put_gradients(a, row, u, out);
      FASTRNN_UNROLL
      for (int g = 0; g < R; ++g) drh[g] = out.drh[g];
    } else if (a.rows.exists(t, b)) {
      U::no_step(a, row, u);
    }
  }

  // Projection, first half: the gradient after it, for the product with W_hr
  struct ProjectBackward {
    using Args = BackwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t undone) {
      const int64_t k = a.rows.steps - 1 - undone;
      const Place at(block, a.projected);
      if (at.none) return;
      const bool active = a.rows.active(a.rows.step(k), at.b);
      const C value = output_too(a, k, at.b, at.u, gathered(a, 0, k, at.b, at.u));
      put<T>(active ? value : C(0), a.memory.inner, at.b * a.projected + at.u);
      state(a, 0, at.b, at.u) = active ? C(0) : value;
    }
  };

  // Two products, first half: the gradient of the second one's result, for the product with its matrix. The states'
  // gradients are then those after the step.
  struct SecondBackward {
    using Args = BackwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t undone) {
      const int64_t k = a.rows.steps - 1 - undone;
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t b = at.b, u = at.u;
      V grads[S], drm[or_one(R2)];
      for (int g = 0; g < R2; ++g) drm[g] = V::zero();
      for (int s = 0; s < S; ++s) grads[s] = gathered(a, s, k, b, u);
      grads[0] = output_too(a, k, b, u, grads[0].v);
      const int64_t t = a.rows.step(k);
      if (a.rows.active(t, b)) U::inner_gradient(a, k, row_of(a, t, b), u, grads, drm);
      for (int s = 0; s < S; ++s) state(a, s, b, u) = grads[s].v;
      for (int g = 0; g < R2; ++g) put<T>(drm[g].v, a.memory.inner, (b * R2 + g) * a.hidden + u);
    }
  };

  struct Backward {
    using Args = BackwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t undone) {
      const int64_t k = a.rows.steps - 1 - undone;
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t b = at.b, u = at.u;
      V grads[S], drh[or_one(R)];
      for (int g = 0; g < R; ++g) drh[g] = V::zero();
      C dm(0);
      if constexpr (R2 > 0) {
        for (int s = 0; s < S; ++s) grads[s] = state(a, s, b, u);
        dm = static_cast<const C*>(a.memory.outer)[b * a.hidden + u];
      } else {
        FASTRNN_UNROLL
        for (int s = 0; s < S; ++s) {
          if (s > 0 || !a.projection) grads[s] = gathered(a, s, k, b, u);
        }
        if (a.projection) {
          grads[0] = static_cast<const C*>(a.memory.outer)[b * a.hidden + u];
        } else {
          grads[0] = output_too(a, k, b, u, grads[0].v);
        }
      }
      step_backward(a, k, b, u, dm, grads, drh);
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) {
        if (s > 0 || !a.projection) state(a, s, b, u) = grads[s].v;
      }
      for (int g = 0; g < R1; ++g) put<T>(drh[g].v, a.memory.operand, (b * R1 + g) * a.hidden + u);
    }
  };

  // All steps of a cell without products
  struct WholeBackward {
    using Args = BackwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t b = at.b, u = at.u;
      V grads[S], drh[or_one(R)];
      for (int s = 0; s < S; ++s) grads[s] = U::final_gradient(a, s, b, u);
      for (int64_t k = a.rows.steps - 1; k >= 0; --k) {
        if (k + 1 < a.rows.steps) {
          for (int s = 0; s < S; ++s) grads[s] = U::divert(a, s, a.rows.anew(k + 1, b), b, u, grads[s].v);
        }
        for (int s = 0; s < S; ++s) store_later(a, s, k, b, u, grads[s].v);
        grads[0] = output_too(a, k, b, u, grads[0].v);
        step_backward(a, k, b, u, C(0), grads, drh);
      }
      for (int s = 0; s < S; ++s) U::put_initial(a, s, b, u, grads[s].v);
    }
  };

  struct Initial {
    using Args = BackwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t) {
      const int64_t widest = a.projected > a.hidden ? a.projected : a.hidden;
      const Place at(block, widest);
      if (at.none) return;
      for (int s = 0; s < S; ++s) {
        if (at.u >= U::width(a, s)) continue;
        C value = state(a, s, at.b, at.u);
        if (R1 > 0 && s == 0) value += static_cast<const C*>(a.memory.product)[at.b * a.projected + at.u];
        U::put_initial(a, s, at.b, at.u, value);
      }
    }
  };
};

}  // namespace fastrnn::cuda
