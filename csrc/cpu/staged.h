// Drivers of cells whose step has several stages: products of several vectors, chained products, and values shared by
// all units of a row (a mean over H). Only cells made by fastrnn.custom have them.
//
// Such a cell describes its step as `Ahead` and the step's gradient as `Back`. Each has
//   kStages, kTemps, kTotals, kOperands, kGroups, kValues (counts)
//   kGroup[kGroups]       the products (StagedGroup)
//   kTotalStage[kTotals]  the stage before which a sum over the units is complete
//   of_row<stage, Math>(row, values)  values shared by all units of a row, such as roots and reciprocals of sums
//   run<stage, Math>(row) the element-wise work of a stage on one vector of units, which reads and writes through `row`
// A stage begins with its products and sums; threads synchronise after it. Values computed by one stage and read by a
// later one are stored in `temps`, for the thread's own units; operands of products and parts of sums are shared.
#pragma once

#include "cpu/engine.h"
#include "cpu/steps.h"
#include "cpu/workspace.h"

namespace FASTRNN_NAMESPACE {

struct StagedGroup {
  int stage;    // the stage that begins with this product
  int blocks;   // matrices (H, H), stacked in w_hh
  int from;     // index of the first one
  int operand;  // an operand, or (forward) ~s for state s before the step
};

// The sum of a vector's lanes, pairwise: the same for every thread division
template <class C>
FASTRNN_FN C sum_lanes(Vec<C> x) {
  alignas(64) C lane[Vec<C>::kLanes];
  x.store(lane);
  FASTRNN_UNROLL
  for (int half = Vec<C>::kLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) lane[k] = lane[k] + lane[k + half];
  }
  return lane[0];
}

// Memory, products and sums of either direction. With Transposed, a product is the sum over all its blocks of products
// with the transposed matrices: operands (B, blocks·H), results (B, H).
template <class Program, int kStates, class T, bool Transposed>
struct Stages {
  using C = Compute<T>;
  using V = Vec<C>;
  using Engine = Plain<C>;
  static constexpr int kLanes = V::kLanes, kGroups = Program::kGroups, kArray = kGroups > 0 ? kGroups : 1;
  static constexpr int blocks(int k) { return Transposed ? 1 : Program::kGroup[k].blocks; }

  Sequence seq;  // in visiting order
  const Steps steps;
  const int64_t B, H, groups, stride;
  Plan plan;
  Workspace workspace;
  Panels<C> weights[kArray];
  C *bias[kArray], *result[kArray], *operand[Program::kOperands + 1], *temps, *parts, *totals;
  C* state[2][kMaxStates];  // (B, H padded): before and after a visit, alternating
  size_t at_weights[kArray], at_bias[kArray], at_result[kArray], at_operands, at_temps, at_parts, at_totals, at_states;
  int64_t operand_stride[Program::kOperands + 1];

  Stages(const Sequence& s, int recurrent, int gates)
      : seq(s), steps{seq}, B(s.batch), H(s.hidden), groups(Panels<C>::groups(s.hidden)), stride(groups * kLanes) {
    const int64_t depth = recurrent > 0 ? (Transposed ? recurrent * H : H) : 16;
    const int64_t columns = Transposed ? H : (recurrent > 0 ? recurrent : gates) * H;
    plan = make_plan(seq, {B, depth, columns, groups, Engine::kBytes, Program::kStages, Engine::kSpeed});
    add_products<0>();
    int64_t width = 0;
    for (int o = 0; o < Program::kOperands; ++o) width += operand_stride[o] = wide(blocks_of_operand(o));
    at_operands = workspace.add(B * width, sizeof(C));
    at_temps = workspace.add(Program::kTemps * B * stride, sizeof(C));
    at_parts = workspace.add(Program::kTotals * B * groups, sizeof(C));
    at_totals = workspace.add(plan.threads * B * Program::kTotals, sizeof(C));
    at_states = workspace.add(2 * kStates * B * stride, sizeof(C));
  }

  int64_t wide(int n) const { return divide_up(n * H, kLanes) * kLanes; }
  static int blocks_of_operand(int o) {
    for (int k = 0; k < kGroups; ++k) {
      if (Program::kGroup[k].operand == o && Transposed) return Program::kGroup[k].blocks;
    }
    return 1;
  }

  template <int K>
  void add_products() {
    if constexpr (K < kGroups) {
      constexpr int n = blocks(K);
      const int64_t depth = Transposed ? Program::kGroup[K].blocks * H : H;
      weights[K] = Engine::template weights<n>(depth, H, rows_of_a_thread(plan, seq));
      at_weights[K] = workspace.add(weights[K].size(), sizeof(C));
      at_bias[K] = Transposed ? 0 : workspace.add((groups + Engine::kGroupsPast) * n * kLanes, sizeof(C));
      at_result[K] = workspace.add(B * n * stride, sizeof(C));
      add_products<K + 1>();
    }
  }

  bool allocate() {
    if (!workspace.allocate()) return false;
    for (int k = 0; k < kGroups; ++k) {
      weights[k].data = workspace.template at<C>(at_weights[k]);
      bias[k] = Transposed ? nullptr : workspace.template at<C>(at_bias[k]);
      result[k] = workspace.template at<C>(at_result[k]);
    }
    operand[0] = workspace.template at<C>(at_operands);
    for (int o = 0; o < Program::kOperands; ++o) operand[o + 1] = operand[o] + B * operand_stride[o];
    temps = workspace.template at<C>(at_temps);
    parts = workspace.template at<C>(at_parts);
    totals = workspace.template at<C>(at_totals);
    for (int k = 0; k < 2; ++k) {
      for (int s = 0; s < kStates; ++s) {
        state[k][s] = workspace.template at<C>(at_states) + (k * kStates + s) * B * stride;
      }
    }
    return true;
  }

  void pack(const Member& member, const T* w_hh, [[maybe_unused]] const T* b_hh) const {
    const Range mine = share(groups, member.rank, member.size);
    for (int k = 0; k < kGroups; ++k) {
      const StagedGroup& g = Program::kGroup[k];
      if constexpr (Transposed) {
        pack_columns_as_lanes(w_hh + g.from * H * H, weights[k], mine);
      } else {
        pack_rows_as_lanes(w_hh + g.from * H * H, weights[k], mine);
        pack_bias(b_hh == nullptr ? b_hh : b_hh + g.from * H, g.blocks, H, bias[k], mine);
      }
    }
  }

  // Computes the products that stage `stage` of visit n begins with.
  template <int K = 0>
  void products(int stage, const Part& part, int64_t n, Range rows) const {
    if constexpr (K < kGroups) {
      constexpr StagedGroup group = Program::kGroup[K];
      if (group.stage == stage) {
        PlainRows<C> x;
        x.data = group.operand < 0 ? state[n & 1][~group.operand] : operand[group.operand < 0 ? 0 : group.operand];
        x.stride = group.operand < 0 ? stride : operand_stride[group.operand < 0 ? 0 : group.operand];
        constexpr int m = blocks(K);
        const auto keep = [&](int64_t i, int64_t g, const C* sum) __attribute__((always_inline)) {
          FASTRNN_UNROLL
          for (int v = 0; v < m; ++v) V::load(sum + v * kLanes).store(at(K, i, g, v));
        };
        Engine::template sweep<m>(weights[K], bias[K], x, part.groups, (n & 1) != 0).run(rows, rows.end, keep);
      }
      products<K + 1>(stage, part, n, rows);
    }
  }

  C* at(int product, int64_t i, int64_t group, int block) const {
    return result[product] + ((i * groups + group) * blocks(product) + block) * kLanes;
  }

  // Computes the sums that stage `stage` begins with; each thread does so for all its rows.
  void sum_up(int stage, Range rows, int rank) const {
    for (int k = 0; k < Program::kTotals; ++k) {
      if (Program::kTotalStage[k] != stage) continue;
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const C* part = parts + (k * B + i) * groups;
        C sum = part[0];
        for (int64_t g = 1; g < groups; ++g) sum = sum + part[g];
        totals[(rank * B + i) * Program::kTotals + k] = sum;
      }
    }
  }

  // Runs all stages of a visit for these rows. `driver` makes the `row` of a vector of units. Returns false if nothing
  // is left to do.
  template <int kStage = 0, class Driver>
  bool run_stages(const Driver& driver, Member& member, Part& part, int64_t n, Range rows) const {
    if constexpr (kStage < Program::kStages) {
      products(kStage, part, n, rows);
      sum_up(kStage, rows, member.rank);
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        if (kStage + 1 == Program::kStages && part.groups.begin == 0) driver.complete(n, i, member.rank);
        alignas(64) C values[(Program::kValues + 1) * kLanes];
        Program::template of_row<kStage, Exact>(driver.row(n, i, 0, Lanes<true>{kLanes}, member.rank, nullptr), values);
        for (int64_t g = part.groups.begin; g < part.groups.end; ++g) {
          if ((g + 1) * kLanes <= H) {
            const Lanes<true> lanes{kLanes};
            auto row = driver.row(n, i, g, lanes, member.rank, values);
            Program::template run<kStage, Exact>(row);
          } else {
            const Lanes<false> lanes{static_cast<int>(H - g * kLanes)};
            auto row = driver.row(n, i, g, lanes, member.rank, values);
            Program::template run<kStage, Exact>(row);
          }
        }
      }
      if constexpr (kStage + 1 < Program::kStages) {
        if (!meet(member, seq, part, groups, groups)) return false;
        rows = {part.rows.begin, smaller(part.rows.end, steps.rows(n))};
        return run_stages<kStage + 1>(driver, member, part, n, rows);
      }
    }
    return true;
  }

  Range units_of(const Part& part) const { return {part.groups.begin * kLanes, part.groups.end * kLanes}; }

  // Sets state s of row i, for the thread's own units, from (H) numbers or (null) to zero.
  void set_state(const Part& part, int now, int s, int64_t i, const T* from) const {
    const Range units = units_of(part);
    C* to = state[now][s] + i * stride;
    const int64_t end = from == nullptr ? units.begin : smaller(units.end, H);
    for (int64_t u = units.begin; u < end; ++u) to[u] = widen(from[u]);
    for (int64_t u = end; u < units.end; ++u) to[u] = C(0);
  }
};

// Data of a stage of either direction: one vector of units of one row. `D`: the driver's Stages
template <class D, bool Full>
struct StagedRow {
  using C = typename D::C;
  using V = typename D::V;
  using Program = typename D::Its;
  static constexpr int kLanes = V::kLanes;
  const D& d;
  const int64_t n, i, group;  // visit, batch row, index of the vector
  const Lanes<Full> lanes;
  const int rank;
  const C* const values;    // values shared by all units of the row, on all lanes
  const int64_t unit, row;  // the first unit; the row in (N, ·) arrays

  StagedRow(const D& driver, int64_t visit, int64_t r, int64_t g, Lanes<Full> l, int thread, const C* of_row)
      : d(driver),
        n(visit),
        i(r),
        group(g),
        lanes(l),
        rank(thread),
        values(of_row),
        unit(g * kLanes),
        row(driver.stages.steps.offset(visit) + r) {}

  FASTRNN_FN V value(int k) const { return V::load(values + k * kLanes); }
  FASTRNN_FN V product(int k, int block) const { return V::load(d.stages.at(k, i, group, block)); }
  FASTRNN_FN V total(int k) const { return V(d.stages.totals[(rank * d.stages.B + i) * Program::kTotals + k]); }
  FASTRNN_FN V mean(int k) const { return mean_of(d.stages.totals[(rank * d.stages.B + i) * Program::kTotals + k]); }
  FASTRNN_FN V mean_of(C total) const { return V(total / static_cast<C>(d.stages.H)); }
  FASTRNN_FN V temp(int k) const { return V::load(d.stages.temps + (k * d.stages.B + i) * d.stages.stride + unit); }
  FASTRNN_FN void set_temp(int k, V x) const {
    x.store(d.stages.temps + (k * d.stages.B + i) * d.stages.stride + unit);
  }
  // Adds a part of total k.
  FASTRNN_FN void add(int k, V x) const {
    C part;
    if constexpr (Full) {
      part = sum_lanes(x);
    } else {
      alignas(64) C lane[kLanes] = {};
      store_some(x, lane, lanes.n);
      part = sum_lanes(V::load(lane));
    }
    d.stages.parts[(k * d.stages.B + i) * d.stages.groups + group] = part;
  }
  FASTRNN_FN void set_operand(int o, int block, V x) const {
    lanes.store(x, d.stages.operand[o] + i * d.stages.operand_stride[o] + block * d.stages.H + unit);
  }
  FASTRNN_FN V state(int s) const { return V::load(d.stages.state[n & 1][s] + i * d.stages.stride + unit); }
  FASTRNN_FN void set_state(int s, V x) const { x.store(d.stages.state[~n & 1][s] + i * d.stages.stride + unit); }
};

}  // namespace FASTRNN_NAMESPACE
