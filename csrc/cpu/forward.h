// Forward driver of cells with at most two products per step, for any cell, direction, packing and thread division
#pragma once

#include "cpu/engine.h"
#include "cpu/steps.h"
#include "cpu/workspace.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Math, class T, class Engine>
struct Forward {
  using C = Compute<T>;
  using V = Vec<C>;
  using Weights = typename Engine::Weights;
  using Operand = typename Engine::Operand;
  using WeightElement = typename Weights::Element;
  using OperandElement = typename Operand::Element;
  static constexpr int kLanes = V::kLanes, G = Cell::kGates, S = Cell::kStates, K = Cell::kSaved;
  static constexpr int Q = Cell::kParameters, R2 = Cell::kSecond, R1 = Cell::kRecurrent - R2;
  static constexpr int kBlocks = R1 > 0 ? R1 : 1;
  static constexpr bool kExtended = Q > 0 || R2 > 0;

  const ForwardArgs& args;
  const Sequence& seq;
  const Steps steps;
  const int64_t H, P;
  const bool projecting;
  Workspace workspace;
  Plan plan;
  Weights recurrent, second, projection;
  C* bias = nullptr;             // b_hh of the first product, packed; then b_ih, and b_hh of the second
  C* first = nullptr;            // (B, R1·H padded): the first product, until the second one is computed
  Operand raw;                   // (B, H), h before a projection; or the vector of the second product
  Operand operand[2];            // (B, P), h packed for the product: before and after a step, alternating
  C* state[2][kMaxStates] = {};  // (B, width(s)): before and after a step, alternating
  int64_t stride[kMaxStates];
  size_t at_recurrent, at_bias, at_second = 0, at_first = 0, at_projection = 0, at_raw = 0, at_operand[2] = {},
                                at_state[2][kMaxStates];

  explicit Forward(const ForwardArgs& a)
      : args(a), seq(a.seq), steps{a.seq}, H(a.seq.hidden), P(a.seq.projected), projecting(a.w_hr != nullptr) {
    const int64_t columns = larger(R1 + R2, 1) * H;  // for a cell without a product: its element-wise work
    const int64_t barriers = projecting || R2 > 0 ? 2 : 1;
    const int64_t groups = Panels<C>::groups(H), depth = R1 + R2 > 0 ? P : 16;
    plan =
        make_plan(seq, {seq.batch, depth, columns, groups, Engine::kBytes, static_cast<int>(barriers), Engine::kSpeed});
    recurrent = Engine::template weights<kBlocks>(P, H, rows_of_a_thread(plan, seq));
    projection = Engine::template weights<1>(H, P, rows_of_a_thread(plan, seq));
    at_recurrent = workspace.add(multiplies() ? recurrent.size() : 0, sizeof(WeightElement));
    at_bias = workspace.add(biases_of_second() + (groups + Engine::kGroupsPast) * larger(R2, 1) * kLanes, sizeof(C));
    if constexpr (R2 > 0) {
      second = Engine::template weights<R2>(H, H, rows_of_a_thread(plan, seq));
      raw = Operand(H);
      at_second = workspace.add(second.size(), sizeof(WeightElement));
      at_raw = workspace.add(raw.size(seq.batch), sizeof(OperandElement));
      at_first = workspace.add(seq.batch * groups * R1 * kLanes, sizeof(C));
    }
    if (projecting) {
      raw = Operand(H);
      at_projection = workspace.add(projection.size(), sizeof(WeightElement));
      at_raw = workspace.add(raw.size(seq.batch), sizeof(OperandElement));
    }
    for (int k = 0; k < 2; ++k) {
      operand[k] = Operand(P);
      if (!Engine::kReadsStates) at_operand[k] = workspace.add(operand[k].size(seq.batch), sizeof(OperandElement));
    }
    for (int s = 0; s < S; ++s) {
      stride[s] = Panels<C>::groups(width(s)) * kLanes;
      for (int k = 0; k < 2; ++k) at_state[k][s] = workspace.add(seq.batch * stride[s], sizeof(C));
    }
  }

  int run() {
    if (!workspace.allocate()) return -1;
    recurrent.data = workspace.template at<WeightElement>(at_recurrent);
    bias = workspace.template at<C>(at_bias);
    second.data = workspace.template at<WeightElement>(at_second);
    first = workspace.template at<C>(at_first);
    projection.data = workspace.template at<WeightElement>(at_projection);
    raw.data = workspace.template at<OperandElement>(at_raw);
    for (int s = 0; s < S; ++s) {
      for (int k = 0; k < 2; ++k) state[k][s] = workspace.template at<C>(at_state[k][s]);
    }
    for (int k = 0; k < 2; ++k) {
      operand[k].data = workspace.template at<OperandElement>(Engine::kReadsStates ? at_state[k][0] : at_operand[k]);
    }
    run_team(plan.threads, &Forward::body, this);
    return workspace.intact() ? 0 : -2;
  }

  static void body(void* self, Member& member) { static_cast<const Forward*>(self)->work(member); }

  int64_t width(int s) const { return s == 0 ? P : H; }
  bool multiplies() const { return R1 > 0 && args.rh == nullptr; }
  int64_t groups() const { return Panels<C>::groups(H); }
  // The first product's biases may be read up to this far after the last group.
  C* input_bias() const { return bias + (groups() + Engine::kGroupsPast) * R1 * kLanes; }
  int64_t biases_of_second() const { return (groups() + Engine::kGroupsPast) * R1 * kLanes + groups() * G * kLanes; }

  Range units_of(int s, const Part& part) const {
    const Range groups = s == 0 ? part.projected_groups : part.groups;
    return {groups.begin * kLanes, smaller(groups.end * kLanes, width(s))};
  }

  bool meet_again(Member& member, Part& part) const {
    return meet(member, seq, part, recurrent.groups(), projection.groups());
  }

  void work(Member& member) const {
    Part part = part_of(plan, seq, member, recurrent.groups(), projection.groups());
    if constexpr (R1 + R2 == 0) part.alone = true;
    pack(member);
    finish(part, {larger(part.rows.begin, seq.counts[0]), part.rows.end}, nullptr);  // rows without any step
    between(part, -1, 0);
    member.wait();
    for (int64_t n = 0; n < seq.steps; ++n) {
      const Range rows{part.rows.begin, smaller(part.rows.end, steps.rows(n))};
      product(part, n, rows);
      if (projecting || R2 > 0) {
        if (!meet_again(member, part)) return;
        if constexpr (R2 > 0) {
          second_product(part, n, rows);
        } else {
          project(part, n, rows);
        }
      }
      between(part, n, n & 1 ? 0 : 1);
      if (!meet_again(member, part)) return;
    }
  }

  void pack(const Member& member) const {
    const Range groups = share(recurrent.groups(), member.rank, member.size);
    const T* w_hh = static_cast<const T*>(args.w_hh);
    const T* b_hh = static_cast<const T*>(args.b_hh);
    if (multiplies()) pack_rows_as_lanes(w_hh, recurrent, groups);
    pack_bias(b_hh, R1, H, bias, groups);
    if constexpr (R2 > 0) {
      pack_rows_as_lanes(w_hh + R1 * H * H, second, groups);
      pack_bias(b_hh == nullptr ? b_hh : b_hh + R1 * H, R2, H, bias + biases_of_second(), groups);
    }
    pack_bias(static_cast<const T*>(args.b_ih), G, H, input_bias(), groups);
    const Range rows = share(seq.batch, member.rank, member.size);
    for (const Operand& x : operand) x.prepare(rows);
    if constexpr (R2 > 0) raw.prepare(rows);
    if (projecting) {
      const Range mine = share(projection.groups(), member.rank, member.size);
      pack_rows_as_lanes(static_cast<const T*>(args.w_hr), projection, mine);
      raw.prepare(rows);
    }
  }

  // After visit n, whose new states are in state[now]: rows that end here store their final states; rows that begin
  // with the next visit get their initial states; those that begin a new segment there get the restart states.
  FASTRNN_RARE void between(const Part& part, int64_t n, int now) const {
    const int64_t here = steps.rows(n), next = steps.rows(n + 1);
    const auto clip = [&](int64_t row) { return larger(part.rows.begin, smaller(part.rows.end, row)); };
    finish(part, {clip(next), clip(here)}, state[now]);
    for (int64_t i = clip(here); i < clip(next); ++i) begin(part, now, i, args.initial);
    if (seq.reset == nullptr || n < 0 || n + 1 == seq.steps) return;
    for (int64_t i = part.rows.begin; i < clip(smaller(here, next)); ++i) {
      if (steps.reset(n + 1, i)) begin(part, now, i, args.restart);
    }
  }

  FASTRNN_RARE void begin(const Part& part, int now, int64_t i, const void* const* states) const {
    for (int s = 0; s < S; ++s) {
      const Range units = units_of(s, part);
      C* to = state[now][s] + i * stride[s];
      const T* from = static_cast<const T*>(states[s]);
      if (from != nullptr) {
        copy(from + i * width(s) + units.begin, to + units.begin, units.end - units.begin);
      } else {
        for (int64_t u = units.begin; u < units.end; ++u) to[u] = C(0);
      }
    }
    if constexpr (!Engine::kReadsStates) {
      const Range units = units_of(0, part);
      for (int64_t u = units.begin; u < units.end; u += kLanes) {
        const Lanes<false> lanes{static_cast<int>(smaller(kLanes, units.end - u))};
        operand[now].store(V::load(state[now][0] + i * stride[0] + u), i, u, lanes);
      }
    }
  }

  // Final states of `rows`, from `states` or (null) from the initial states
  FASTRNN_RARE void finish(const Part& part, Range rows, C* const* states) const {
    for (int s = 0; s < S; ++s) {
      const Range units = units_of(s, part);
      const int64_t count = units.end - units.begin, w = width(s);
      const T* initial = static_cast<const T*>(args.initial[s]);
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        T* to = static_cast<T*>(args.final_states[s]) + i * w + units.begin;
        if (states != nullptr) {
          copy(states[s] + i * stride[s] + units.begin, to, count);
        } else if (initial != nullptr) {
          copy(initial + i * w + units.begin, to, count);
        } else {
          for (int64_t u = 0; u < count; ++u) narrow(C(0), to + u);
        }
      }
    }
  }

  void product(const Part& part, int64_t n, Range rows) const {
    const int now = n & 1;
    const auto stage = [&](int64_t i, int64_t group, const C* sum) __attribute__((always_inline)) {
      const int64_t unit = group * kLanes;
      if (unit + kLanes <= H) {
        between_products<true>(n, i, unit, kLanes, sum);
      } else {
        between_products<false>(n, i, unit, static_cast<int>(H - unit), sum);
      }
    };
    if constexpr (R1 > 0) {
      const auto given = [&](int64_t i, int64_t group, C* sum) { load_product(i, group * kLanes, sum); };
      Engine::template sweep<R1>(recurrent, bias, operand[now], part.groups, now != 0)
          .run(rows, multiplies() ? rows.end : rows.begin, stage, given);
    } else {
      alignas(64) constexpr C kNothing[kLanes] = {};
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        for (int64_t group = part.groups.begin; group < part.groups.end; ++group) stage(i, group, kNothing);
      }
    }
  }

  // R·h of row i that the caller has computed, for the units of a vector.
  FASTRNN_RARE void load_product(int64_t i, int64_t unit, C* sum) const {
    for (int g = 0; g < R1; ++g) {
      copy(static_cast<const T*>(args.rh) + (i * R1 + g) * H + unit, sum + g * kLanes, smaller(kLanes, H - unit));
    }
  }

  void second_product(const Part& part, int64_t n, Range rows) const {
    if constexpr (R2 > 0) {
      const auto stage = [&](int64_t i, int64_t group, const C* sum) __attribute__((always_inline)) {
        const int64_t unit = group * kLanes;
        const C* before = first + (i * groups() + group) * R1 * kLanes;
        if (unit + kLanes <= H) {
          element<true>(n, i, unit, kLanes, before, sum);
        } else {
          element<false>(n, i, unit, static_cast<int>(H - unit), before, sum);
        }
      };
      const C* b = bias + biases_of_second();
      Engine::template sweep<R2>(second, b, raw, part.groups, (n & 1) != 0).run(rows, rows.end, stage);
    }
  }

  // On one vector of units of row i: with one product the cell, with two the vector of the second product
  template <bool Full>
  FASTRNN_FN void between_products(int64_t n, int64_t i, int64_t unit, int lanes_left, const C* sum) const {
    if constexpr (R2 == 0) {
      element<Full>(n, i, unit, lanes_left, sum, nullptr);
    } else {
      const Lanes<Full> lanes{lanes_left};
      const int64_t row = steps.offset(n) + i;
      const T* gates = static_cast<const T*>(args.gates) + row * G * H + unit;
      C* kept = first + (i * groups() + unit / kLanes) * R1 * kLanes;
      V wx[G], rh[kBlocks], before[S], parameters[Q > 0 ? Q : 1], vector[1];
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) {
        wx[g] = lanes.load(gates + g * H) + V::load(input_bias() + unit * G + g * kLanes);
      }
      FASTRNN_UNROLL
      for (int g = 0; g < R1; ++g) {
        rh[g] = V::load(sum + g * kLanes);
        rh[g].store(kept + g * kLanes);
      }
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) before[s] = V::load(state[n & 1][s] + i * stride[s] + unit);
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) parameters[q] = lanes.load(static_cast<const T*>(args.parameters) + q * H + unit);
      Cell::template inner<Math>(wx, rh, before, parameters, vector);
      raw.store(vector[0], i, unit, lanes);
      if (args.training) lanes.store(vector[0], static_cast<T*>(args.unprojected) + row * H + unit);
    }
  }

  // The cell on one vector of units of row i. `sum`: of the first product; `after_vector`: of the second
  template <bool Full>
  FASTRNN_FN void element(int64_t n, int64_t i, int64_t unit, int lanes_left, const C* sum,
                          [[maybe_unused]] const C* after_vector) const {
    const Lanes<Full> lanes{lanes_left};
    const int now = n & 1;
    const int64_t row = steps.offset(n) + i;
    T* gates = static_cast<T*>(args.gates) + row * G * H + unit;
    V wx[G], rh[kBlocks], before[S], after[S], saved[K > 0 ? K : 1];
    // Prefetches W·x of the next step, which another core may have computed and hold in its cache.
    const int64_t next = (seq.reverse ? -seq.batch : seq.batch) * G * H;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      __builtin_prefetch(gates + next + g * H, 0, 3);
      wx[g] = lanes.load(gates + g * H) + V::load(input_bias() + unit * G + g * kLanes);
    }
    FASTRNN_UNROLL
    for (int g = 0; g < R1; ++g) rh[g] = V::load(sum + g * kLanes);
    before[0] = V::zero();
    if constexpr (Cell::kReadsHidden) before[0] = V::load(state[now][0] + i * stride[0] + unit);
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) before[s] = V::load(state[now][s] + i * stride[s] + unit);

    if constexpr (kExtended) {
      V parameters[Q > 0 ? Q : 1], rm[R2 > 0 ? R2 : 1];
      FASTRNN_UNROLL
      for (int g = 0; g < R2; ++g) rm[g] = V::load(after_vector + g * kLanes);
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) parameters[q] = lanes.load(static_cast<const T*>(args.parameters) + q * H + unit);
      Cell::template forward<Math>(wx, rh, rm, before, parameters, after, saved);
    } else {
      Cell::template forward<Math>(wx, rh, before, after, saved);
    }

    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) after[s].store(state[!now][s] + i * stride[s] + unit);
    if (projecting) {
      raw.store(after[0], i, unit, lanes);
      if (args.training) lanes.store(after[0], static_cast<T*>(args.unprojected) + row * H + unit);
    } else {
      after[0].store(state[!now][0] + i * stride[0] + unit);
      if constexpr (!Engine::kReadsStates) operand[!now].store(after[0], i, unit, lanes);
      T* y = static_cast<T*>(args.y) + row * H + unit;
      lanes.store(after[0], y);
      // Prefetches the next step's line of y: stores retire in order, and a stall would delay the operand.
      __builtin_prefetch(y + (seq.reverse ? -seq.batch : seq.batch) * H, 1, 3);
    }
    if (!args.training) return;
    FASTRNN_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k < G) {
        lanes.store(saved[k], gates + k * H);
      } else {
        lanes.store(saved[k], static_cast<T*>(args.extra) + (row * (K - G) + (k - G)) * H + unit);
      }
    }
    FASTRNN_UNROLL
    for (int s = 1; s < S; ++s) lanes.store(after[s], static_cast<C*>(args.cells) + (row * (S - 1) + s - 1) * H + unit);
  }

  void project(const Part& part, int64_t n, Range rows) const {
    const int now = n & 1;
    const auto stage = [&](int64_t i, int64_t group, const C* sum) __attribute__((always_inline)) {
      const int64_t unit = group * kLanes;
      const V h = V::load(sum);
      h.store(state[!now][0] + i * stride[0] + unit);
      const Lanes<false> some{static_cast<int>(smaller(kLanes, P - unit))};
      if constexpr (!Engine::kReadsStates) operand[!now].store(h, i, unit, some);
      T* y = static_cast<T*>(args.y) + (steps.offset(n) + i) * P + unit;
      if (unit + kLanes <= P) {
        store(h, y);
      } else {
        store_some(h, y, static_cast<int>(P - unit));
      }
    };
    Engine::template sweep<1>(projection, nullptr, raw, part.projected_groups, now != 0).run(rows, rows.end, stage);
  }
};

template <class Cell, class T, class Engine = Plain<Compute<T>>>
int forward(const ForwardArgs& args) {
  Forward<Cell, Exact, T, Engine> driver(args);
  return driver.run();
}

}  // namespace FASTRNN_NAMESPACE
