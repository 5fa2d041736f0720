// Forward driver of cells whose step has stages; see staged.h.
#pragma once

#include "cpu/staged.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class T>
struct StagedForward {
  using Its = typename Cell::Ahead;
  using Scratch = Stages<Its, Cell::kStates, T, false>;
  using C = typename Scratch::C;
  using V = typename Scratch::V;
  static constexpr int kLanes = V::kLanes, G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int kVectors = Cell::kVectors;

  const ForwardArgs& args;
  Scratch stages;
  C* input_bias = nullptr;
  size_t at_bias;

  explicit StagedForward(const ForwardArgs& a) : args(a), stages(a.seq, Cell::kRecurrent, G) {
    at_bias = stages.workspace.add(stages.groups * G * kLanes, sizeof(C));
  }

  int run() {
    if (!stages.allocate()) return -1;
    input_bias = stages.workspace.template at<C>(at_bias);
    run_team(stages.plan.threads, &StagedForward::body, this);
    return stages.workspace.intact() ? 0 : -2;
  }

  static void body(void* self, Member& member) { static_cast<const StagedForward*>(self)->work(member); }

  void work(Member& member) const {
    const Sequence& seq = stages.seq;
    Part part = part_of(stages.plan, seq, member, stages.groups, stages.groups);
    if constexpr (Cell::kRecurrent == 0 && Its::kTotals == 0) part.alone = true;
    stages.pack(member, static_cast<const T*>(args.w_hh), static_cast<const T*>(args.b_hh));
    pack_bias(static_cast<const T*>(args.b_ih), G, stages.H, input_bias,
              share(stages.groups, member.rank, member.size));
    finish(part, {larger(part.rows.begin, seq.counts[0]), part.rows.end}, -1);  // rows without any step
    between(part, -1, 0);
    member.wait();
    for (int64_t n = 0; n < seq.steps; ++n) {
      const Range rows{part.rows.begin, smaller(part.rows.end, stages.steps.rows(n))};
      if (!stages.run_stages(*this, member, part, n, rows)) return;
      between(part, n, n & 1 ? 0 : 1);
      if (!meet(member, seq, part, stages.groups, stages.groups)) return;
    }
  }

  // After visit n, whose new states are in state[now]: see Forward::between.
  void between(const Part& part, int64_t n, int now) const {
    const Steps& steps = stages.steps;
    const int64_t here = steps.rows(n), next = steps.rows(n + 1);
    const auto clip = [&](int64_t row) { return larger(part.rows.begin, smaller(part.rows.end, row)); };
    finish(part, {clip(next), clip(here)}, now);
    for (int64_t i = clip(here); i < clip(next); ++i) begin(part, now, i, args.initial);
    if (stages.seq.reset == nullptr || n < 0 || n + 1 == stages.seq.steps) return;
    for (int64_t i = part.rows.begin; i < clip(smaller(here, next)); ++i) {
      if (steps.reset(n + 1, i)) begin(part, now, i, args.restart);
    }
  }

  // Row i of a state [B, H], or null
  const T* row_of(const void* state, int64_t i) const {
    return state == nullptr ? nullptr : static_cast<const T*>(state) + i * stages.H;
  }

  void begin(const Part& part, int now, int64_t i, const void* const* states) const {
    for (int s = 0; s < S; ++s) stages.set_state(part, now, s, i, row_of(states[s], i));
  }

  // Final states of `rows`: those in state[now], or (-1) the initial ones
  void finish(const Part& part, Range rows, int now) const {
    const Range units = stages.units_of(part);
    const int64_t end = smaller(units.end, stages.H);
    for (int s = 0; s < S; ++s) {
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        T* to = static_cast<T*>(args.final_states[s]) + i * stages.H;
        const T* from = row_of(args.initial[s], i);
        for (int64_t u = units.begin; u < end; ++u) {
          narrow(now >= 0          ? stages.state[now][s][i * stages.stride + u]
                 : from != nullptr ? widen(from[u])
                                   : C(0),
                 to + u);
        }
      }
    }
  }

  // Before the last stage of row i, by one thread: saves its sums.
  void complete(int64_t n, int64_t i, int rank) const {
    if (!args.training) return;
    const int64_t width = (S - 1) * stages.H + Its::kTotals;
    C* to = static_cast<C*>(args.cells) + (stages.steps.offset(n) + i) * width + (S - 1) * stages.H;
    for (int k = 0; k < Its::kTotals; ++k) to[k] = stages.totals[(rank * stages.B + i) * Its::kTotals + k];
  }

  template <bool Full>
  struct Row : StagedRow<StagedForward, Full> {
    using Base = StagedRow<StagedForward, Full>;
    using Base::Base;
    using Base::d;
    using Base::lanes;
    using Base::row;
    using Base::unit;
    FASTRNN_FN V x(int g) const {
      const V bias = V::load(d.input_bias + (this->group * G + g) * kLanes);
      return lanes.load(static_cast<const T*>(d.args.gates) + (row * G + g) * d.stages.H + unit) + bias;
    }
    FASTRNN_FN V parameter(int q) const {
      return lanes.load(static_cast<const T*>(d.args.parameters) + q * d.stages.H + unit);
    }
    FASTRNN_FN void save_vector(int k, V x) const {
      if (!d.args.training) return;
      lanes.store(x, static_cast<T*>(d.args.unprojected) + (row * kVectors + k) * d.stages.H + unit);
    }
    FASTRNN_FN void save(int k, V x) const {
      if (!d.args.training) return;
      const int64_t H = d.stages.H;
      if (k < G) {
        lanes.store(x, static_cast<T*>(d.args.gates) + (row * G + k) * H + unit);
      } else {
        lanes.store(x, static_cast<T*>(d.args.extra) + (row * (K - G) + (k - G)) * H + unit);
      }
    }
    FASTRNN_FN void new_state(int s, V x) const {
      this->set_state(s, x);
      const int64_t H = d.stages.H;
      if (s == 0) lanes.store(x, static_cast<T*>(d.args.y) + row * H + unit);
      if (s > 0 && d.args.training) {
        lanes.store(x, static_cast<C*>(d.args.cells) + row * ((S - 1) * H + Its::kTotals) + (s - 1) * H + unit);
      }
    }
  };
  template <bool Full>
  FASTRNN_FN Row<Full> row(int64_t n, int64_t i, int64_t group, Lanes<Full> lanes, int rank, const C* values) const {
    return Row<Full>(*this, n, i, group, lanes, rank, values);
  }
};

template <class Cell, class T>
int staged_forward(const ForwardArgs& args) {
  StagedForward<Cell, T> driver(args);
  return driver.run();
}

}  // namespace FASTRNN_NAMESPACE
