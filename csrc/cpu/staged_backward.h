// Backward driver of cells whose step has stages, and so does their gradient; see staged.h.
#pragma once

#include "cpu/staged.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class T>
struct StagedBackward {
  using Its = typename Cell::Back;
  using Scratch = Stages<Its, Cell::kStates, T, true>;
  using C = typename Scratch::C;
  using V = typename Scratch::V;
  static constexpr int kLanes = V::kLanes, G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int R = Cell::kRecurrent, Q = Cell::kParameters, kVectors = Cell::kVectors;
  static constexpr int kTotals = Cell::Ahead::kTotals;

  const BackwardArgs& args;
  Scratch stages;                            // its states: the gradients of a step's states
  C *initial = nullptr, *restart = nullptr;  // gradients of the initial states, and of the restart states
  size_t at_initial, at_restart;

  static Sequence opposite(Sequence s) {
    s.reverse = !s.reverse;
    return s;
  }

  explicit StagedBackward(const BackwardArgs& a) : args(a), stages(opposite(a.seq), R, G) {
    at_initial = stages.workspace.add(S * stages.B * stages.stride, sizeof(C));
    at_restart = stages.workspace.add(restarts() ? S * stages.B * stages.stride : 0, sizeof(C));
  }

  bool restarts() const { return args.grad_restart[0] != nullptr; }

  int run() {
    if (!stages.allocate()) return -1;
    initial = stages.workspace.template at<C>(at_initial);
    restart = restarts() ? stages.workspace.template at<C>(at_restart) : initial;
    run_team(stages.plan.threads, &StagedBackward::body, this);
    return stages.workspace.intact() ? 0 : -2;
  }

  static void body(void* self, Member& member) { static_cast<const StagedBackward*>(self)->work(member); }

  void work(Member& member) const {
    const Sequence& seq = stages.seq;
    Part part = part_of(stages.plan, seq, member, stages.groups, stages.groups);
    if constexpr (R == 0 && Its::kTotals == 0) part.alone = true;
    stages.pack(member, static_cast<const T*>(args.w_hh), nullptr);
    const Range units = stages.units_of(part);
    for (int s = 0; s < S; ++s) {
      for (int64_t i = part.rows.begin; i < part.rows.end; ++i) {
        for (int64_t u = units.begin; u < units.end; ++u) {
          row_of(initial, s, i)[u] = C(0);
          row_of(restart, s, i)[u] = C(0);
        }
      }
    }
    member.wait();
    for (int64_t n = 0; n < seq.steps; ++n) {
      between(part, n);
      const Range rows{part.rows.begin, smaller(part.rows.end, stages.steps.rows(n))};
      if (!stages.run_stages(*this, member, part, n, rows)) return;
      if (!meet(member, seq, part, stages.groups, stages.groups)) return;
    }
    between(part, seq.steps);
    finish(part);
  }

  C* row_of(C* gradients, int s, int64_t i) const { return gradients + (s * stages.B + i) * stages.stride; }

  // Before visit n: rows whose last step it is start with the gradient of their final states; the gradient that reaches
  // a row after its first step belongs to its initial state, or to its restart state if that began a later segment.
  // Then the outputs' gradients are added.
  void between(const Part& part, int64_t n) const {
    const Steps& steps = stages.steps;
    const int64_t before = steps.rows(n - 1), here = steps.rows(n);
    const int64_t end = smaller(part.rows.end, larger(before, here));
    for (int64_t i = part.rows.begin; i < end; ++i) {
      const bool ends = i < before && (i >= here || steps.reset(n, i));
      for (int s = 0; s < S; ++s) {
        if (ends) hand_over(part, n, s, i, i >= here ? initial : restart);
        if (i < here && i >= before) stages.set_state(part, n & 1, s, i, final_gradient(s, i));
      }
      if (i >= here) continue;
      for (int s = 0; s < S; ++s) store_later(part, n, s, i);
      add_output(part, n, i);
    }
  }

  const T* final_gradient(int s, int64_t i) const {
    const T* from = static_cast<const T*>(args.grad_final[s]);
    return from == nullptr ? from : from + i * stages.H;
  }

  void hand_over(const Part& part, int64_t n, int s, int64_t i, C* gradients) const {
    const Range units = stages.units_of(part);
    C *from = stages.state[n & 1][s] + i * stages.stride, *to = row_of(gradients, s, i);
    for (int64_t u = units.begin; u < units.end; ++u) {
      to[u] = to[u] + from[u];
      from[u] = C(0);
    }
  }

  // Store the gradient reaching state s of row i from later steps, if requested.
  void store_later(const Part& part, int64_t n, int s, int64_t i) const {
    if (args.later[s] == nullptr) return;
    const Range units = stages.units_of(part);
    C* to = static_cast<C*>(args.later[s]) + (stages.steps.offset(n) + i) * stages.H;
    const C* from = stages.state[n & 1][s] + i * stages.stride;
    for (int64_t u = units.begin; u < smaller(units.end, stages.H); ++u) to[u] = from[u];
  }

  void add_output(const Part& part, int64_t n, int64_t i) const {
    const Range units = stages.units_of(part);
    const int64_t end = smaller(units.end, stages.H), at = (stages.steps.offset(n) + i) * stages.H;
    C* dh = stages.state[n & 1][0] + i * stages.stride;
    const T* gradient = static_cast<const T*>(args.grad_y);
    for (int64_t u = units.begin; u < end; ++u) {
      if (gradient != nullptr) dh[u] = dh[u] + widen(gradient[at + u]);
      if (args.clip > 0) {  // NaN stays NaN
        const C bound = static_cast<C>(args.clip);
        dh[u] = dh[u] > bound ? bound : dh[u] < -bound ? -bound : dh[u];
      }
      if (args.dh != nullptr) narrow(dh[u], static_cast<T*>(args.dh) + at + u);
    }
  }

  void finish(const Part& part) const {
    const Range units = stages.units_of(part);
    const int64_t end = smaller(units.end, stages.H);
    for (int s = 0; s < S; ++s) {
      for (int64_t i = part.rows.begin; i < part.rows.end; ++i) {
        const T* passed = i >= stages.seq.counts[0] ? final_gradient(s, i) : nullptr;  // no step
        const auto store = [&](void* gradient, C* from) {
          T* to = static_cast<T*>(gradient) + i * stages.H;
          for (int64_t u = units.begin; gradient != nullptr && u < end; ++u) narrow(from[u], to + u);
        };
        for (int64_t u = units.begin; passed != nullptr && u < end; ++u) row_of(initial, s, i)[u] = widen(passed[u]);
        store(args.grad_initial[s], row_of(initial, s, i));
        store(args.grad_restart[s], row_of(restart, s, i));
      }
    }
  }

  void complete(int64_t, int64_t, int) const {}

  template <bool Full>
  struct Row : StagedRow<StagedBackward, Full> {
    using Base = StagedRow<StagedBackward, Full>;
    using Base::Base;
    using Base::d;
    using Base::i;
    using Base::lanes;
    using Base::n;
    using Base::row;
    using Base::unit;
    FASTRNN_FN const C* cells(int64_t r) const {
      return static_cast<const C*>(d.args.cells) + r * ((S - 1) * d.stages.H + kTotals);
    }
    FASTRNN_FN V saved(int k) const {
      const int64_t H = d.stages.H;
      return lanes.load(k < G ? static_cast<const T*>(d.args.gates) + (row * G + k) * H + unit
                              : static_cast<const T*>(d.args.extra) + (row * (K - G) + (k - G)) * H + unit);
    }
    FASTRNN_FN V saved_total(int k) const { return V(cells(row)[(S - 1) * d.stages.H + k]); }
    FASTRNN_FN V saved_mean(int k) const { return this->mean_of(cells(row)[(S - 1) * d.stages.H + k]); }
    FASTRNN_FN V vector(int k) const {
      return lanes.load(static_cast<const T*>(d.args.unprojected) + (row * kVectors + k) * d.stages.H + unit);
    }
    FASTRNN_FN V parameter(int q) const {
      return lanes.load(static_cast<const T*>(d.args.parameters) + q * d.stages.H + unit);
    }
    FASTRNN_FN V new_state(int s) const {
      const int64_t H = d.stages.H;
      return s == 0 ? lanes.load(static_cast<const T*>(d.args.y) + row * H + unit)
                    : lanes.load(cells(row) + (s - 1) * H + unit);
    }
    FASTRNN_FN V old_state(int s) const {
      const int64_t H = d.stages.H;
      const Steps& steps = d.stages.steps;
      const bool continues = i < steps.rows(n + 1);
      if (continues && !steps.reset(n + 1, i)) {
        const int64_t earlier = steps.offset(n + 1) + i;
        return s == 0 ? lanes.load(static_cast<const T*>(d.args.y) + earlier * H + unit)
                      : lanes.load(cells(earlier) + (s - 1) * H + unit);
      }
      const T* from = static_cast<const T*>((continues ? d.args.restart : d.args.initial)[s]);
      return from == nullptr ? V::zero() : lanes.load(from + i * H + unit);
    }
    FASTRNN_FN void set_da(int g, V x) const {
      lanes.store(x, static_cast<T*>(d.args.da) + (row * G + g) * d.stages.H + unit);
    }
    FASTRNN_FN void set_drh(int k, V x) const {
      lanes.store(x, static_cast<T*>(d.args.drh) + (row * R + k) * d.stages.H + unit);
    }
    FASTRNN_FN void set_dparameter(int q, V x) const {
      C* to = static_cast<C*>(d.args.dparameters) + (i * Q + q) * d.stages.H + unit;
      lanes.store(lanes.load(to) + x, to);
    }
  };
  template <bool Full>
  FASTRNN_FN Row<Full> row(int64_t n, int64_t i, int64_t group, Lanes<Full> lanes, int rank, const C* values) const {
    return Row<Full>(*this, n, i, group, lanes, rank, values);
  }
};

template <class Cell, class T>
int staged_backward(const BackwardArgs& args) {
  StagedBackward<Cell, T> driver(args);
  return driver.run();
}

}  // namespace FASTRNN_NAMESPACE
