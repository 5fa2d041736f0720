// A sequence computed directly from the equations: one row and one unit at a time, in double, with the functions of
// <math.h>.
#pragma once

#include <algorithm>

#include "problem.h"

namespace check {

inline double sigmoid(double x) { return 1 / (1 + exp(-x)); }

inline bool has_equations(const std::string& cell) {
  return cell == "lstm" || cell == "gru" || cell == "rnn_tanh" || cell == "rnn_relu";
}

struct UnitState {
  double h, c;
};

// One unit: a = W·x + b and r = R·h + b_r, both by gate; h (only GRU uses it) and c before the step. Returns h and c
// after it.
inline UnitState unit_step(const std::string& cell, const Values& a, const Values& r, double h, double c) {
  if (cell == "rnn_tanh") return {tanh(a[0] + r[0]), 0};
  if (cell == "rnn_relu") return {std::max(0.0, a[0] + r[0]), 0};
  if (cell == "gru") {
    const double reset = sigmoid(a[0] + r[0]), update = sigmoid(a[1] + r[1]);
    return {(1 - update) * tanh(a[2] + reset * r[2]) + update * h, 0};
  }
  const double in = sigmoid(a[0] + r[0]), forget = sigmoid(a[1] + r[1]), out = sigmoid(a[3] + r[3]);
  const double c_new = forget * c + in * tanh(a[2] + r[2]);
  return {out * tanh(c_new), c_new};
}

// R·h + b_hh.
inline Values recurrent_product(const Problem& p, const Values& h) {
  Values r = p.b_hh;
  r.resize(index(p.kernels->gates * p.H));
  for (size_t j = 0; j < r.size(); ++j) {
    for (size_t k = 0; k < h.size(); ++k) r[j] += p.w_hh[j * h.size() + k] * h[k];
  }
  return r;
}

struct RowState {
  Values h, c;
};

inline RowState row_of(const Values* states, const Problem& p, int64_t b) {
  RowState state{Values(index(p.P)), Values(index(p.H))};
  for (size_t k = 0; k < state.h.size() && !states[0].empty(); ++k) state.h[k] = states[0][index(b * p.P) + k];
  for (size_t k = 0; k < state.c.size() && !states[1].empty(); ++k) state.c[k] = states[1][index(b * p.H) + k];
  return state;
}

inline RowState initial_of(const Problem& p, int64_t b) { return row_of(p.initial, p, b); }

inline void row_step(const Problem& p, int64_t row, RowState& state) {
  const Values r = recurrent_product(p, state.h);
  Values h(index(p.H)), a(index(p.kernels->gates)), b(a.size());
  for (int64_t u = 0; u < p.H; ++u) {
    for (int64_t g = 0; g < p.kernels->gates; ++g) {
      const size_t at = index(g * p.H + u);
      a[index(g)] = p.wx[index(row * p.kernels->gates * p.H) + at] + (p.b_ih.empty() ? 0 : p.b_ih[at]);
      b[index(g)] = r[at];
    }
    const double before = p.projecting ? 0 : state.h[index(u)];
    const UnitState after = unit_step(p.cell, a, b, before, state.c[index(u)]);
    h[index(u)] = after.h;
    state.c[index(u)] = after.c;
  }
  if (!p.projecting) {
    state.h = h;
    return;
  }
  for (int64_t k = 0; k < p.P; ++k) {
    state.h[index(k)] = 0;
    for (int64_t u = 0; u < p.H; ++u) state.h[index(k)] += p.w_hr[index(k * p.H + u)] * h[index(u)];
  }
}

struct Expected {
  Values y, final_h, final_c;
};

// Computes one row at a time, independently of the others.
inline Expected equations(const Problem& p) {
  Expected out{Values(index(p.N * p.P)), Values(index(p.B * p.P)), Values(index(p.B * p.H))};
  for (int64_t b = 0; b < p.B; ++b) {
    RowState state = initial_of(p, b);
    const int64_t length = p.length(b);
    for (int64_t n = 0; n < length; ++n) {
      const int64_t t = p.reverse ? length - 1 - n : n;
      // The border before the segment's first step in time; in reverse, the segment ended with the step after it.
      const int64_t border = p.reverse ? t + 1 : t;
      if (n > 0 && p.resets && p.reset[index(p.offsets[index(border)] + b)] != 0) {
        state = row_of(p.segment_start(), p, b);
      }
      row_step(p, p.offsets[index(t)] + b, state);
      std::copy(state.h.begin(), state.h.end(), out.y.begin() + (p.offsets[index(t)] + b) * p.P);
    }
    std::copy(state.h.begin(), state.h.end(), out.final_h.begin() + b * p.P);
    std::copy(state.c.begin(), state.c.end(), out.final_c.begin() + b * p.H);
  }
  return out;
}

}  // namespace check
