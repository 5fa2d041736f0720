// The element-wise kernels of the step-wise driver: a product of the vendor's library, then one of these, every step.
// A thread takes one unit of one row. With a projection, or in a cell that multiplies twice, the library has two
// products a step, and there are two kernels; a cell that multiplies nothing goes through all its steps in one.
#pragma once

#include "cuda/unit.h"

namespace fastrnn::cuda {

// The thread's row and its unit among `width`, or none. A block works on one row.
struct Place {
  int64_t b, u;
  bool none;

  FASTRNN_DEVICE Place(Block& block, int64_t width)
      : b(block.x()), u(block.y() * block.threads() + block.thread()), none(u >= width) {}
};

template <class Cell, class T>
struct Stepwise {
  using U = Unit<Cell, T>;
  using C = typename U::C;
  using V = typename U::V;
  static constexpr int S = U::S, R = U::R, R2 = U::R2, R1 = U::R1, kSecond = R2;

  template <class Args>
  static FASTRNN_FN C& state(const Args& a, int s, int64_t b, int64_t u) {
    return static_cast<C*>(a.memory.states[s])[b * U::width(a, s) + u];
  }

  // What state s of row b is for the next step, and h as the next product reads it.
  static FASTRNN_FN void settle(const ForwardArgs& a, int s, int64_t k, int64_t b, int64_t u, C value) {
    const C next = U::conclude(a, s, k, b, u, value);
    state(a, s, b, u) = next;
    if (s == 0) put<T>(next, a.memory.operand, b * a.projected + u);
  }

  static FASTRNN_FN void load_product(const ForwardArgs& a, int64_t b, int64_t u, typename U::Inputs& in) {
    const C* product = static_cast<const C*>(a.memory.product);
    for (int g = 0; g < R1; ++g) in.rh[g] = product[(b * R1 + g) * a.hidden + u];
  }

  // The initial states, of the widest width that there is.
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

  // After R·h.
  struct Forward {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, u = at.u;
      const bool projection = a.memory.inner != nullptr, active = a.rows.active(t, b);
      const int64_t n = a.rows.exists(t, b) ? a.rows.row(t, b) : -1;
      V states[S];
      for (int s = 0; s < S; ++s) states[s] = s == 0 && projection ? C(0) : state(a, s, b, u);
      if (active) {
        typename U::Inputs in;
        U::load_input(a, n, u, in);
        load_product(a, b, u, in);
        U::forward(a, n, u, in, states);
        if (projection) put<T>(states[0].v, a.memory.inner, b * a.hidden + u);
        if (a.unprojected != nullptr) put<T>(states[0].v, a.unprojected, n * a.hidden + u);
        if (!projection) put<T>(states[0].v, a.y, n * a.hidden + u);
      } else if (n >= 0) {
        if (!projection) put<T>(C(0), a.y, n * a.hidden + u);
        if (a.unprojected != nullptr) put<T>(C(0), a.unprojected, n * a.hidden + u);
      }
      // From 0: an index that is not a constant would put the states into local memory.
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) {
        if (s > 0 || !projection) settle(a, s, k, b, u, states[s].v);
      }
    }
  };

  // After the projection.
  struct Project {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.projected);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, p = at.u;
      C value = state(a, 0, b, p);
      if (a.rows.active(t, b)) {
        value = static_cast<const C*>(a.memory.outer)[b * a.projected + p];
        put<T>(value, a.y, a.rows.row(t, b) * a.projected + p);
      } else if (a.rows.exists(t, b)) {
        put<T>(C(0), a.y, a.rows.row(t, b) * a.projected + p);
      }
      settle(a, 0, k, b, p, value);
    }
  };

  // After the first product of two: what the second one multiplies.
  struct Inner {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, u = at.u;
      const int64_t n = a.rows.exists(t, b) ? a.rows.row(t, b) : -1;
      C vector(0);
      if (a.rows.active(t, b)) {
        V states[S];
        for (int s = 0; s < S; ++s) states[s] = state(a, s, b, u);
        typename U::Inputs in;
        U::load_input(a, n, u, in);
        load_product(a, b, u, in);
        vector = U::inner(a, u, in, states).v;
      }
      put<T>(vector, a.memory.inner, b * a.hidden + u);
      if (a.unprojected != nullptr && n >= 0) put<T>(vector, a.unprojected, n * a.hidden + u);
    }
  };

  // After the second product.
  struct Second {
    using Args = ForwardArgs;
    static FASTRNN_DEVICE void run(Block& block, const Args& a, int64_t k) {
      const Place at(block, a.hidden);
      if (at.none) return;
      const int64_t t = a.rows.step(k), b = at.b, u = at.u;
      V states[S];
      for (int s = 0; s < S; ++s) states[s] = state(a, s, b, u);
      if (a.rows.active(t, b)) {
        const int64_t n = a.rows.row(t, b);
        typename U::Inputs in;
        U::load_input(a, n, u, in);
        load_product(a, b, u, in);
        const C* second = static_cast<const C*>(a.memory.outer);
        for (int g = 0; g < R2; ++g) in.rm[g] = second[(b * R2 + g) * a.hidden + u];
        U::forward(a, n, u, in, states);
        put<T>(states[0].v, a.y, n * a.hidden + u);
      } else if (a.rows.exists(t, b)) {
        put<T>(C(0), a.y, a.rows.row(t, b) * a.hidden + u);
      }
      for (int s = 0; s < S; ++s) settle(a, s, k, b, u, states[s].v);
    }
  };

  // All steps of a cell that multiplies nothing.
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
          const int64_t n = a.rows.row(t, b);
          typename U::Inputs in;
          U::load_input(a, n, u, in);
          U::forward(a, n, u, in, states);
          put<T>(states[0].v, a.y, n * a.hidden + u);
        } else if (a.rows.exists(t, b)) {
          put<T>(C(0), a.y, a.rows.row(t, b) * a.hidden + u);
        }
        for (int s = 0; s < S; ++s) states[s] = U::conclude(a, s, k, b, u, states[s].v);
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

  // The gradient of state s after the k-th step, all that came after it together.
  static FASTRNN_FN C gathered(const BackwardArgs& a, int s, int64_t k, int64_t b, int64_t u) {
    C value = state(a, s, b, u);
    if (k + 1 < a.rows.steps) {
      if (R1 > 0 && s == 0) value += static_cast<const C*>(a.memory.product)[b * a.projected + u];
      value = U::divert(a, s, k + 1, b, u, value);
    }
    U::store_later(a, s, k, b, u, value);
    return value;
  }

  // ∂L/∂h of the k-th step, with its output's.
  static FASTRNN_FN C output_too(const BackwardArgs& a, int64_t k, int64_t b, int64_t u, C value) {
    const int64_t t = a.rows.step(k);
    if (!a.rows.exists(t, b)) return value;
    const bool active = a.rows.active(t, b);
    const int64_t n = a.rows.row(t, b);
    if (active) value = U::with_output(a, n, u, value);
    if (a.dh != nullptr) put<T>(active ? value : C(0), a.dh, n * a.projected + u);
    return value;
  }

  // Projection, first half: the gradient after it, for the product with W_hr.
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
      if (a.rows.active(a.rows.step(k), b)) U::inner_gradient(a, k, b, u, grads, drm);
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
      if (a.rows.active(a.rows.step(k), b)) {
        U::backward(a, k, b, u, dm, grads, drh);
      } else {
        U::no_step(a, k, b, u);
      }
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) {
        if (s > 0 || !a.projection) state(a, s, b, u) = grads[s].v;
      }
      for (int g = 0; g < R1; ++g) put<T>(drh[g].v, a.memory.operand, (b * R1 + g) * a.hidden + u);
    }
  };

  // All steps of a cell that multiplies nothing.
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
          for (int s = 0; s < S; ++s) grads[s] = U::divert(a, s, k + 1, b, u, grads[s].v);
        }
        for (int s = 0; s < S; ++s) U::store_later(a, s, k, b, u, grads[s].v);
        grads[0] = output_too(a, k, b, u, grads[0].v);
        if (a.rows.active(a.rows.step(k), b)) {
          U::backward(a, k, b, u, C(0), grads, drh);
        } else {
          U::no_step(a, k, b, u);
        }
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
