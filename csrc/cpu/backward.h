// Backward driver, for the same cells, layouts and thread divisions as the forward driver.
//
// The steps are visited in the opposite order. Visit n begins with the product for the previous visit: ∂L/∂h of this
// step = drh of the step visited before, times R. For rows whose first step (or first step of a segment) was the
// previous visit, that gradient belongs to their initial state instead. For a cell with two products, the visit
// continues with the second one: from the gradient of its result to that of the vector it multiplies, and then the
// whole cell's.
#pragma once

#include "cpu/engine.h"
#include "cpu/steps.h"
#include "cpu/workspace.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Math, class T, class Engine>
struct Backward {
  using C = Compute<T>;
  using V = Vec<C>;
  using Weights = typename Engine::Weights;
  using Operand = typename Engine::Operand;
  using WeightElement = typename Weights::Element;
  using OperandElement = typename Operand::Element;
  static constexpr int kLanes = V::kLanes, G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int Q = Cell::kParameters, R = Cell::kRecurrent, R2 = Cell::kSecond, R1 = R - R2;
  static constexpr int kSplitFrom = Cell::kSplitFrom, kSplit = R - kSplitFrom;
  static constexpr bool kCanLeaveOutHidden =
      requires(V (&saved)[K > 0 ? K : 1], V (&after)[S]) { Cell::leave_out_hidden(saved, after); };
  // The product reads drh directly from the caller's memory.
  static constexpr bool kInPlace = Engine::kReadsStates && sizeof(T) == sizeof(C) && kSplit == 0;

  const BackwardArgs& args;
  Sequence seq;  // in visiting order: opposite to the forward pass
  const Steps steps;
  const int64_t H, P;
  const bool projecting;
  bool want_initial = false;
  Workspace workspace;
  Plan plan;
  Weights recurrent, second, projection;
  Operand operand[2];            // (B, R1·H) drh of a step, alternating, unless in place
  Operand total;                 // (B, P) ∂L/∂h before a projection; (B, R2·H) for the second product's result
  C* incoming[kMaxStates] = {};  // (B, H padded): gradients of the new states, until the second product is computed
  C* direct[kMaxStates] = {};    // (B, width(s)): gradient of a step's old states, without the product's contribution
  C* initial[kMaxStates] = {};   // (B, width(s)): gradient of the initial states
  C* restart[kMaxStates] = {};   // the same for the restart states
  int64_t stride[kMaxStates];
  size_t at_recurrent, at_second = 0, at_incoming[kMaxStates] = {}, at_projection = 0, at_operand[2] = {}, at_total = 0,
                       at_direct[kMaxStates], at_initial[kMaxStates], at_restart[kMaxStates];

  explicit Backward(const BackwardArgs& a)
      : args(a), seq(opposite(a.seq)), steps{seq}, H(seq.hidden), P(seq.projected), projecting(a.w_hr != nullptr) {
    for (int s = 0; s < S; ++s)
      want_initial = want_initial || args.grad_initial[s] != nullptr || args.grad_restart[s] != nullptr;
    const int64_t depth = R > 0 ? R * H : 16;  // for a cell without a product: its element-wise work
    const int barriers = projecting || R2 > 0 ? 2 : 1;
    plan = make_plan(seq, {seq.batch, depth, P, Panels<C>::groups(P), Engine::kBytes, barriers, Engine::kSpeed});
    recurrent = Engine::template weights<1>(R1 * H, P, rows_of_a_thread(plan, seq));
    projection = Engine::template weights<1>(P, H, rows_of_a_thread(plan, seq));
    at_recurrent = workspace.add(needs_product() ? recurrent.size() : 0, sizeof(WeightElement));
    if (projecting) {
      total = Operand(P);
      at_projection = workspace.add(projection.size(), sizeof(WeightElement));
      at_total = workspace.add(total.size(seq.batch), sizeof(OperandElement));
    }
    if constexpr (!kInPlace) {
      for (int k = 0; k < 2; ++k) {
        operand[k] = Operand(R1 * H);
        at_operand[k] = workspace.add(operand[k].size(seq.batch), sizeof(OperandElement));
      }
    }
    if constexpr (R2 > 0) {
      second = Engine::template weights<1>(R2 * H, H, rows_of_a_thread(plan, seq));
      total = Operand(R2 * H);
      at_second = workspace.add(second.size(), sizeof(WeightElement));
      at_total = workspace.add(total.size(seq.batch), sizeof(OperandElement));
    }
    for (int s = 0; s < S; ++s) {
      stride[s] = Panels<C>::groups(width(s)) * kLanes;
      if (R2 > 0) at_incoming[s] = workspace.add(seq.batch * stride[s], sizeof(C));
      at_direct[s] = workspace.add(seq.batch * stride[s], sizeof(C));
      at_initial[s] = workspace.add(want_initial ? seq.batch * stride[s] : 0, sizeof(C));
      at_restart[s] = workspace.add(args.grad_restart[s] != nullptr ? seq.batch * stride[s] : 0, sizeof(C));
    }
  }

  static Sequence opposite(Sequence s) {
    s.reverse = !s.reverse;
    return s;
  }
  bool needs_product() const { return R1 > 0 && (seq.steps > 1 || (want_initial && args.initial_product)); }
  int64_t width(int s) const { return s == 0 ? P : H; }

  int run() {
    if (!workspace.allocate()) return -1;
    recurrent.data = workspace.template at<WeightElement>(at_recurrent);
    second.data = workspace.template at<WeightElement>(at_second);
    projection.data = workspace.template at<WeightElement>(at_projection);
    total.data = workspace.template at<OperandElement>(at_total);
    if constexpr (!kInPlace) {
      for (int k = 0; k < 2; ++k) operand[k].data = workspace.template at<OperandElement>(at_operand[k]);
    }
    for (int s = 0; s < S; ++s) {
      direct[s] = workspace.template at<C>(at_direct[s]);
      incoming[s] = workspace.template at<C>(at_incoming[s]);
      initial[s] = workspace.template at<C>(at_initial[s]);
      restart[s] = args.grad_restart[s] != nullptr ? workspace.template at<C>(at_restart[s]) : initial[s];
    }
    run_team(plan.threads, &Backward::body, this);
    return workspace.intact() ? 0 : -2;
  }

  static void body(void* self, Member& member) { static_cast<const Backward*>(self)->work(member); }

  Range units_of(int s, const Part& part) const {
    const Range groups = s == 0 ? part.projected_groups : part.groups;
    return {groups.begin * kLanes, groups.end * kLanes};  // within the padded rows of scratch memory
  }

  bool meet_again(Member& member, Part& part) const {
    return meet(member, seq, part, projection.groups(), recurrent.groups());
  }

  void work(Member& member) const {
    Part part = part_of(plan, seq, member, projection.groups(), recurrent.groups());
    if constexpr (R == 0) part.alone = true;
    pack(member);
    clear(part);
    member.wait();
    for (int64_t n = 0; n < seq.steps; ++n) {
      enter(part, n);
      hidden_gradient(part, n);
      if (projecting || R2 > 0) {
        if (!meet_again(member, part)) return;
        unproject(part, n);
      }
      if (!meet_again(member, part)) return;
    }
    if (!want_initial) return;
    hidden_gradient(part, seq.steps);  // no rows left: the remaining gradients belong to the initial states
    if (projecting || R2 > 0) unproject(part, seq.steps);
    finish(part);
  }

  void pack(const Member& member) const {
    const Range rows = share(seq.batch, member.rank, member.size);
    if constexpr (!kInPlace) {
      for (const Operand& x : operand) x.prepare(rows);
    }
    if (needs_product()) {
      const Range mine = share(recurrent.groups(), member.rank, member.size);
      pack_columns_as_lanes(static_cast<const T*>(args.w_hh), recurrent, mine);
    }
    if constexpr (R2 > 0) {
      const Range mine = share(second.groups(), member.rank, member.size);
      pack_columns_as_lanes(static_cast<const T*>(args.w_hh) + R1 * H * H, second, mine);
      total.prepare(rows);
    }
    if (projecting) {
      const Range mine = share(projection.groups(), member.rank, member.size);
      pack_columns_as_lanes(static_cast<const T*>(args.w_hr), projection, mine);
      total.prepare(rows);
    }
  }

  FASTRNN_RARE void clear(const Part& part) const {
    if (!want_initial) return;
    for (int s = 0; s < S; ++s) {
      const Range units = units_of(s, part);
      for (int64_t i = part.rows.begin; i < part.rows.end; ++i) {
        for (int64_t u = units.begin; u < units.end; ++u) {
          initial[s][i * stride[s] + u] = C(0);
          restart[s][i * stride[s] + u] = C(0);
        }
      }
    }
  }

  // Rows whose last step is that of visit n start with the gradient of their final states.
  FASTRNN_RARE void enter(const Part& part, int64_t n) const {
    const int64_t from = larger(part.rows.begin, steps.rows(n - 1));
    const int64_t to = smaller(part.rows.end, steps.rows(n));
    for (int s = 0; s < S; ++s) {
      for (int64_t i = from; i < to; ++i) load_final(part, s, i, direct[s] + i * stride[s]);
    }
  }

  FASTRNN_RARE void load_final(const Part& part, int s, int64_t i, C* to) const {
    const Range units = units_of(s, part);
    const T* from = static_cast<const T*>(args.grad_final[s]);
    const int64_t end = from != nullptr ? smaller(units.end, width(s)) : units.begin;
    for (int64_t u = units.begin; u < end; ++u) to[u] = widen(from[i * width(s) + u]);
    for (int64_t u = larger(end, units.begin); u < units.end; ++u) to[u] = C(0);
  }

  // Return true if row i has a step in visit n whose new state the step visited before started from (or was its last).
  bool goes_on(int64_t n, int64_t i) const {
    return i < steps.rows(n) && (i >= steps.rows(n - 1) || !steps.reset(n, i));
  }

  // The gradient reaching state s of row i: at the step of visit n, or else at its initial state or, if the row has a
  // step here, at a restart state.
  FASTRNN_FN V arriving(int s, int64_t n, int64_t i, int64_t unit, V product) const {
    const V gradient = product + V::load(direct[s] + i * stride[s] + unit);
    if (goes_on(n, i)) return gradient;
    if (want_initial) {
      C* to = (i < steps.rows(n) ? restart : initial)[s] + i * stride[s] + unit;
      (V::load(to) + gradient).store(to);
    }
    return V::zero();
  }

  Operand operand_of(int64_t n) const {
    if constexpr (kInPlace) {
      Operand x;
      if (n >= 0) x.data = static_cast<T*>(args.da) + steps.offset(n) * G * H;
      x.stride = G * H;
      return x;
    }
    return operand[n & 1];
  }

  // The product for visit n-1, and the cell's backward for the step of visit n (no step for n = T)
  void hidden_gradient(const Part& part, int64_t n) const {
    const int64_t before = steps.rows(n - 1), now = steps.rows(n);
    const Range rows{part.rows.begin, smaller(part.rows.end, larger(before, now))};
    const int64_t live = n == seq.steps && !args.initial_product ? 0 : smaller(part.rows.end, before);
    const auto stage = [&](int64_t i, int64_t group, const C* sum) __attribute__((always_inline)) {
      const int64_t unit = group * kLanes;
      const V dh = arriving(0, n, i, unit, V::load(sum));
      if (i >= now) {
        if (!projecting) hand_over(n, i, unit);
      } else if (unit + kLanes <= P) {
        with_output<true>(n, i, unit, kLanes, dh);
      } else {
        with_output<false>(n, i, unit, static_cast<int>(P - unit), dh);
      }
    };
    if constexpr (R1 > 0) {
      const Operand x = operand_of(n - 1);
      Engine::template sweep<1>(recurrent, nullptr, x, part.projected_groups, (n & 1) != 0).run(rows, live, stage);
    } else {
      alignas(64) constexpr C kNothing[kLanes] = {};
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        for (int64_t g = part.projected_groups.begin; g < part.projected_groups.end; ++g) stage(i, g, kNothing);
      }
    }
  }

  // Stores the states' gradients, other than h's, of a row without a step in visit n.
  FASTRNN_FN void hand_over(int64_t n, int64_t i, int64_t unit) const {
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) arriving(s, n, i, unit, V::zero());
  }

  // Store the gradient reaching state s of row i from later steps, if requested.
  template <bool Full>
  FASTRNN_FN void store_later(int s, int64_t n, int64_t i, int64_t unit, Lanes<Full> lanes, V gradient) const {
    if (args.later[s] == nullptr) return;
    lanes.store(gradient, static_cast<C*>(args.later[s]) + (steps.offset(n) + i) * width(s) + unit);
  }

  // Adds the gradient of the step's output.
  template <bool Full>
  FASTRNN_FN void with_output(int64_t n, int64_t i, int64_t unit, int lanes_left, V dh) const {
    const Lanes<Full> lanes{lanes_left};
    const int64_t at = (steps.offset(n) + i) * P + unit;
    store_later(0, n, i, unit, lanes, dh);
    if (args.grad_y != nullptr) dh = dh + lanes.load(static_cast<const T*>(args.grad_y) + at);
    if (args.clip > 0) {  // NaN stays NaN
      const V bound(static_cast<C>(args.clip));
      dh = max(-bound, min(bound, dh));
    }
    if (args.dh != nullptr) lanes.store(dh, static_cast<T*>(args.dh) + at);
    if (projecting) {
      total.store(dh, i, unit, lanes);
      V::zero().store(direct[0] + i * stride[0] + unit);
    } else if constexpr (R2 > 0) {
      before_second<Full>(n, i, unit, lanes, dh);
    } else {
      element<Full>(n, i, unit, lanes, dh);
    }
  }

  // The gradient of the second product's result
  template <bool Full>
  FASTRNN_FN void before_second(int64_t n, int64_t i, int64_t unit, Lanes<Full> lanes, V dh) const {
    Values v;
    load(n, i, unit, lanes, v);
    v.ds_new[0] = dh;
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) {
      v.ds_new[s] = arriving(s, n, i, unit, V::zero());
      store_later(s, n, i, unit, lanes, v.ds_new[s]);
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) v.ds_new[s].store(incoming[s] + i * stride[s] + unit);
    V drm[R2];
    Cell::template inner_gradient<Math>(v.saved, v.before, v.after, v.vector, v.parameters, v.ds_new, drm);
    FASTRNN_UNROLL
    for (int g = 0; g < R2; ++g) total.store(drm[g], i, g * H + unit, lanes);
  }

  void unproject(const Part& part, int64_t n) const {
    const int64_t now = steps.rows(n);
    const Range rows{part.rows.begin, smaller(part.rows.end, larger(steps.rows(n - 1), now))};
    const auto stage = [&](int64_t i, int64_t group, const C* sum) __attribute__((always_inline)) {
      const int64_t unit = group * kLanes;
      if (i >= now) {
        if (projecting) hand_over(n, i, unit);
      } else if (unit + kLanes <= H) {
        element<true>(n, i, unit, Lanes<true>{kLanes}, V::load(sum));
      } else {
        element<false>(n, i, unit, Lanes<false>{static_cast<int>(H - unit)}, V::load(sum));
      }
    };
    Engine::template sweep<1>(R2 > 0 ? second : projection, nullptr, total, part.groups, (n & 1) != 0)
        .run(rows, smaller(part.rows.end, now), stage);
  }

  // State s of row i before the step of visit n
  template <bool Full>
  FASTRNN_FN V state_before(int s, int64_t n, int64_t i, int64_t unit, Lanes<Full> lanes) const {
    const bool continues = i < steps.rows(n + 1);
    if (continues && !steps.reset(n + 1, i)) {
      const int64_t row = steps.offset(n + 1) + i;
      if (s == 0) return lanes.load(static_cast<const T*>(args.y) + row * H + unit);
      return lanes.load(static_cast<const C*>(args.cells) + (row * (S - 1) + s - 1) * H + unit);
    }
    const void* first = (continues ? args.restart : args.initial)[s];
    return first == nullptr ? V::zero() : lanes.load(static_cast<const T*>(first) + i * H + unit);
  }

  // Inputs of the cell's gradient, one vector each
  struct Values {
    V saved[K > 0 ? K : 1], before[S], after[S], vector[1], parameters[Q > 0 ? Q : 1], ds_new[S];
  };

  // Loads all but ds_new, for row i of visit n.
  template <bool Full>
  FASTRNN_FN void load(int64_t n, int64_t i, int64_t unit, Lanes<Full> lanes, Values& v) const {
    const int64_t row = steps.offset(n) + i;
    FASTRNN_UNROLL
    for (int k = 0; k < K; ++k) {
      v.saved[k] = lanes.load(k < G ? static_cast<const T*>(args.gates) + (row * G + k) * H + unit
                                    : static_cast<const T*>(args.extra) + (row * (K - G) + (k - G)) * H + unit);
    }
    v.before[0] = v.after[0] = V::zero();
    if constexpr (Cell::kReadsHidden) v.before[0] = state_before(0, n, i, unit, lanes);
    if (!projecting) v.after[0] = lanes.load(static_cast<const T*>(args.y) + row * H + unit);
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) {
      v.before[s] = state_before(s, n, i, unit, lanes);
      v.after[s] = lanes.load(static_cast<const C*>(args.cells) + (row * (S - 1) + s - 1) * H + unit);
    }
    if constexpr (R2 > 0) v.vector[0] = lanes.load(static_cast<const T*>(args.unprojected) + row * H + unit);
    FASTRNN_UNROLL
    for (int q = 0; q < Q; ++q) v.parameters[q] = lanes.load(static_cast<const T*>(args.parameters) + q * H + unit);
  }

  // Runs the cell on one vector of units of row i. `gradient`: of the new h, or with two products of the second's
  // vector
  template <bool Full>
  FASTRNN_FN void element(int64_t n, int64_t i, int64_t unit, Lanes<Full> lanes, V gradient) const {
    const int64_t row = steps.offset(n) + i;
    Values v;
    V da[G], drh[R > 0 ? R : 1], ds[S];
    load(n, i, unit, lanes, v);
    if constexpr (kCanLeaveOutHidden) {
      if (args.hidden_unused && n == 0) {
        Cell::leave_out_hidden(v.saved, v.after);
        gradient = V::zero();  // even if the projection is not finite
      }
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) {
      if constexpr (R2 > 0) {
        v.ds_new[s] = V::load(incoming[s] + i * stride[s] + unit);
      } else {
        v.ds_new[s] = s == 0 ? gradient : arriving(s, n, i, unit, V::zero());
        if (s > 0) store_later(s, n, i, unit, lanes, v.ds_new[s]);
      }
    }
    if constexpr (Q > 0 || R2 > 0) {
      V dparameters[Q > 0 ? Q : 1];
      const V dvector[1] = {gradient};
      Cell::template backward<Math>(v.saved, v.before, v.after, v.vector, v.parameters, v.ds_new, dvector, da, drh, ds,
                                    dparameters);
      C* to = static_cast<C*>(args.dparameters) + i * Q * H + unit;
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) lanes.store(lanes.load(to + q * H) + dparameters[q], to + q * H);
    } else {
      Cell::template backward<Math>(v.saved, v.before, v.after, v.ds_new, da, drh, ds);
    }

    T* to = static_cast<T*>(args.da) + row * G * H + unit;
    T* to_drh = static_cast<T*>(args.drh) + row * kSplit * H + unit;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) lanes.store(da[g], to + g * H);
    FASTRNN_UNROLL
    for (int g = 0; g < R; ++g) {
      if (g >= kSplitFrom) lanes.store(drh[g], to_drh + (g - kSplitFrom) * H);
      if constexpr (!kInPlace) {
        if (g < R1) operand[n & 1].store(g >= kSplitFrom ? drh[g] : da[g], i, g * H + unit, lanes);
      }
    }
    FASTRNN_UNROLL
    for (int s = projecting ? 1 : 0; s < S; ++s) ds[s].store(direct[s] + i * stride[s] + unit);
  }

  // Gradients of the initial states; for a row without any step, those of its final states.
  FASTRNN_RARE void finish(const Part& part) const {
    for (int s = 0; s < S; ++s) {
      const Range units = units_of(s, part);
      const int64_t end = smaller(units.end, width(s));
      for (int64_t i = part.rows.begin; i < part.rows.end; ++i) {
        const auto store = [&](const C* from, void* gradient) {
          if (gradient == nullptr) return;
          copy(from + units.begin, static_cast<T*>(gradient) + i * width(s) + units.begin, end - units.begin);
        };
        if (i >= seq.counts[0]) load_final(part, s, i, initial[s] + i * stride[s]);
        store(initial[s] + i * stride[s], args.grad_initial[s]);
        store(restart[s] + i * stride[s], args.grad_restart[s]);
      }
    }
  }
};

template <class Cell, class T, class Engine = Plain<Compute<T>>>
int backward(const BackwardArgs& args) {
  Backward<Cell, Exact, T, Engine> driver(args);
  return driver.run();
}

}  // namespace FASTRNN_NAMESPACE
