// Checks every cell's kernels for every instruction set of this machine, without torch: every dtype, layout, direction
// and division of the work, on small sizes that are no multiple of a vector.
//
//   float64 forward    against the equations in equations.h
//   float64 backward   against finite differences of the kernel's own forward
//   other dtypes       against float64, within tolerance_of
//   divided work       bitwise equal
//   memory             scratch poisoned with NaN and fenced, sentinels around every output
//
// check_kernels [--quick]: prints one line per instruction set, or the first failing case with exit status 1. A cell
// that equations.h does not define is checked too, but not against equations.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/workspace.h"
#include "equations.h"

using namespace check;

namespace {

constexpr int kTeam = 3;  // threads

[[noreturn]] void fail(const Problem& p, const std::string& what) {
  printf("%s FAILED: %s\n  in %s\n", capability(), what.c_str(), p.describe().c_str());
  exit(1);
}

// ---- comparisons

double largest(const Values& values) {
  double most = 0;
  for (double x : values) most = std::max(most, fabs(x));
  return most;
}

void expect_close(const Problem& p, const std::string& what, const Values& found, const Values& wanted,
                  double tolerance) {
  for (size_t k = 0; k < wanted.size(); ++k) {
    if (fabs(found[k] - wanted[k]) <= tolerance) continue;  // false for NaN
    char text[200];
    snprintf(text, sizeof(text), "%s[%zu] is %.17g, expected %.17g within %.3g", what.c_str(), k, found[k], wanted[k],
             tolerance);
    fail(p, text);
  }
}

void expect_sound(const Problem& p, const Way& way, const Outputs& out) {
  if (out.code != 0) fail(p, way.describe() + ": a kernel returned " + std::to_string(out.code));
  for (const auto& [name, buffer] : out.all) {
    if (!buffer.intact()) fail(p, way.describe() + ": wrote outside of " + name);
  }
}

Outputs sound_forward(const Problem& p, const Way& way) {
  Outputs out = run_forward(p, way);
  expect_sound(p, way, out);
  return out;
}
Outputs sound_backward(const Problem& p, const Way& way, const Outputs& forward, bool want_initial = true) {
  Outputs out = run_backward(p, way, forward, want_initial);
  expect_sound(p, way, out);
  return out;
}

void expect_same_bits(const Problem& p, const std::string& what, const Outputs& found, const Outputs& wanted) {
  for (const auto& [name, buffer] : found.all) {
    if (!buffer.same_bits(wanted[name])) fail(p, what + ": " + name + " has other bits");
  }
}

void check_equations(const Problem& p, const Outputs& forward) {
  if (!has_equations(p.cell)) return;
  const Expected expected = equations(p);
  expect_close(p, "y", forward["y"].values(), expected.y, 1e-12);
  expect_close(p, "final0", forward["final0"].values(), expected.final_h, 1e-12);
  if (p.kernels->states > 1) expect_close(p, "final1", forward["final1"].values(), expected.final_c, 1e-12);
}

// ---- gradients

// L = Σ grad_y · y + Σ grad_final · final
double loss(const Problem& p) {
  const Outputs out = run_forward(p, Way());
  double sum = 0;
  const auto add = [&](const Values& weights, const Values& values) {
    for (size_t k = 0; k < weights.size(); ++k) sum += weights[k] * values[k];
  };
  add(p.grad_y, out["y"].values());
  for (int s = 0; s < p.kernels->states; ++s) add(p.grad_final[s], out["final" + std::to_string(s)].values());
  return sum;
}

// The error of the central difference itself: h²/6 · L''' is below 1e-8 here, and the rounding of L, a sum of at most
// some hundreds, divided by 2h below 1e-8 too.
void expect_slope(Problem& p, const std::string& what, double& x, double gradient) {
  constexpr double kStep = 1e-5;
  const double before = x;
  x = before + kStep;
  const double above = loss(p);
  x = before - kStep;
  const double below = loss(p);
  x = before;
  expect_close(p, what, {gradient}, {(above - below) / (2 * kStep)}, 1e-7 + 1e-6 * fabs(gradient));
}

// Σ over rows.
// ∂L/∂rh of all gates.
Values whole_drh(const Problem& p, const Outputs& backward) {
  const int64_t G = p.kernels->gates, split = p.kernels->split_from;
  const Values da = backward["da"].values(), drh = backward["drh"].values();
  Values all;
  for (int64_t n = 0; n < p.N; ++n) {
    for (int64_t k = 0; k < G * p.H; ++k) {
      const bool same = k < split * p.H;
      all.push_back(same ? da[index(n * G * p.H + k)] : drh[index(n * (G - split) * p.H + k - split * p.H)]);
    }
  }
  return all;
}

Values sum_rows(const Values& rows, int64_t width) {
  Values sum(index(width));
  for (size_t k = 0; k < rows.size(); ++k) sum[k % sum.size()] += rows[k];
  return sum;
}

// Σ over rows of dh · unprojected, ∂L/∂w_hr.
Values projection_gradient(const Problem& p, const Values& dh, const Values& unprojected) {
  Values sum(p.w_hr.size());
  for (int64_t row = 0; row < p.N; ++row) {
    for (int64_t k = 0; k < p.P; ++k) {
      for (int64_t u = 0; u < p.H; ++u) {
        sum[index(k * p.H + u)] += dh[index(row * p.P + k)] * unprojected[index(row * p.H + u)];
      }
    }
  }
  return sum;
}

// Checks a few elements each of ∂L/∂wx, ∂L/∂b_hh (which sums drh), the initial states' gradients, and ∂L/∂w_hr (of dh).
void check_slopes(Problem p, const Outputs& forward, const Outputs& backward, Random& random, int samples) {
  const int64_t wide = p.kernels->gates * p.H;
  const Values da = backward["da"].values();
  const auto check = [&](const std::string& what, Values& values, const Values& gradient) {
    for (int n = 0; n < samples && !values.empty(); ++n) {
      const size_t k = random.below(values.size());
      expect_slope(p, what + "[" + std::to_string(k) + "]", values[k], gradient[k]);
    }
  };
  check("da", p.wx, da);
  p.b_hh.resize(index(wide));
  check("Σ drh", p.b_hh, sum_rows(whole_drh(p, backward), wide));
  for (int s = 0; s < p.kernels->states; ++s) {
    p.initial[s].resize(index(p.B * p.width(s)));
    const std::string name = "grad_initial" + std::to_string(s);
    check(name, p.initial[s], backward[name].values());
    const std::string restarted = "grad_restart" + std::to_string(s);
    if (p.own_restart) check(restarted, p.restart[s], backward[restarted].values());
  }
  if (!p.projecting) return;
  check("grad_w_hr", p.w_hr, projection_gradient(p, backward["dh"].values(), forward["unprojected"].values()));
}

// ---- optional arguments

void check_options(const Problem& p, const Outputs& forward, const Outputs& backward) {
  Way way;
  way.training = false;
  const Outputs inference = sound_forward(p, way);
  expect_close(p, "gates without training", inference["gates"].values(), p.wx, 0);
  for (const char* name : {"y", "final0"}) {
    if (!inference[name].same_bits(forward[name])) fail(p, std::string("training changes ") + name);
  }
  expect_same_bits(p, "grad_initial = null", sound_backward(p, Way(), forward, false), backward);

  Problem zeros = p, nulls = p;
  std::fill(zeros.grad_y.begin(), zeros.grad_y.end(), 0.0);
  nulls.grad_y.clear();
  for (int s = 0; s < p.kernels->states; ++s) {
    std::fill(zeros.grad_final[s].begin(), zeros.grad_final[s].end(), 0.0);
    nulls.grad_final[s].clear();
  }
  for (const auto& [name, buffer] : sound_backward(nulls, Way(), forward).all) {
    expect_close(p, "no gradient in, " + name, buffer.values(), Values(buffer.values().size()), 0);
  }
  nulls.grad_y = p.grad_y;
  zeros.grad_y = p.grad_y;
  const Outputs wanted = sound_backward(zeros, Way(), forward);
  for (const auto& [name, buffer] : sound_backward(nulls, Way(), forward).all) {
    expect_close(p, "grad_final = null, " + name, buffer.values(), wanted[name].values(), 0);
  }
}

// Checks a single step whose product the caller computes, and whose part of the initial gradient the caller adds.
void check_single_step(const Problem& p, const Outputs& forward, const Outputs& backward) {
  if (p.T != 1) return;
  const int64_t wide = p.kernels->gates * p.H;
  Values rh;
  for (int64_t b = 0; b < p.B; ++b) {
    const Values row = recurrent_product(p, initial_of(p, b).h);
    rh.insert(rh.end(), row.begin(), row.end());
  }
  Way way;
  way.rh = &rh;
  for (const auto& [name, buffer] : sound_forward(p, way).all) {
    expect_close(p, name + " with rh given", buffer.values(), forward[name].values(), 1e-12);
  }
  way = Way();
  way.product = false;
  Values partial = sound_backward(p, way, forward)["grad_initial0"].values();
  const Values drh = whole_drh(p, backward);
  for (int64_t b = 0; b < p.N; ++b) {
    for (int64_t k = 0; k < p.P; ++k) {
      for (int64_t j = 0; j < wide; ++j)
        partial[index(b * p.P + k)] += drh[index(b * wide + j)] * p.w_hh[index(j * p.P + k)];
    }
  }
  expect_close(p, "grad_initial0 without its product", partial, backward["grad_initial0"].values(), 1e-12);
}

// ---- dtypes and division of the work

// The operands of products split into parts of bfloat16, rounded from float32: one part or two.
double rounding_of_operands(Format format) {
  const bool vectors = strcmp(capability(), "avx512_bf16") == 0;
  if (!vectors && strcmp(capability(), "amx") != 0) return 0;
  if (format == Format::kBFloat16 || format == Format::kFloat32OnePart) return ldexp(1.0, -8);
  return !vectors && (format == Format::kFloat16 || format == Format::kFloat32TwoParts) ? ldexp(1.0, -16) : 0;
}

// u is the rounding error of the storage dtype, v that of the dtype of the arithmetic. An element's error is relative
// to the largest element of its array, or to 1.
//   Forward. A step rounds P products, their sum and about 16 further results in v. R's rows sum to less than 1/4 and
//   derivatives are at most 1, so that a step passes on less error than it got (and fewer than T such errors add up). u
//   occurs once, when storing. Backward reads at most 4 stored values per element and stores it: 8u with derivatives
//   y(1-y) and 1-y², whose error is up to twice that of y, once per step on the way; drh continues in v, and its
//   product has G·H terms. w is the rounding of h and drh as operands of the products in the AMX matrix unit, once per
//   step.
double tolerance_of(const Problem& p, Format format, bool backward, double most) {
  const double u = roundoff(format), v = roundoff(computed_in(format));
  const double w = rounding_of_operands(format);
  const auto T = static_cast<double>(p.T);
  const auto terms = static_cast<double>(backward ? p.kernels->gates * p.H + p.H : p.P + (p.projecting ? p.H : 0));
  return std::max(1.0, most) * (T * (terms + 16) * v + (backward ? 8 * T : 1) * u + T * w);
}

void expect_near(const Problem& p, Format format, bool backward, const Outputs& found, const Outputs& exact) {
  for (const auto& [name, buffer] : found.all) {
    const Values wanted = exact[name].values();
    expect_close(p, std::string(kFormatNames[static_cast<int>(format)]) + " " + name, buffer.values(), wanted,
                 tolerance_of(p, format, backward, largest(wanted)));
  }
}

// Checks one of the divisions, in turn: with more threads than cores, each barrier costs a time slice.
void check_sharing(const Problem& p, const Outputs& forward, const Outputs& backward, Way way, uint64_t turn) {
  constexpr struct {
    Split split;
    int threads;
  } kWays[] = {{Split::kUnits, kTeam}, {Split::kRows, kTeam}, {Split::kUnits, 2}, {Split::kAuto, kTeam}};
  way.split = kWays[turn % 4].split;
  way.threads = kWays[turn % 4].threads;
  expect_same_bits(p, way.describe(), sound_forward(p, way), forward);
  expect_same_bits(p, way.describe(), sound_backward(p, way, forward), backward);
}

void check_problem(const Problem& p, Random& random, bool quick) {
  Outputs exact_forward, exact_backward;
  uint64_t turn = random.below(4);  // so that each dtype is combined with each division
  for (Format format : {Format::kFloat64, Format::kFloat32, Format::kBFloat16, Format::kFloat16,
                        Format::kFloat32TwoParts, Format::kFloat32OnePart}) {
    if (p.kernels->forward[static_cast<int>(format)] == nullptr) continue;
    Way way;
    way.format = format;
    Outputs forward = sound_forward(p, way), backward = sound_backward(p, way, forward);
    check_sharing(p, forward, backward, way, turn++);
    if (format == Format::kFloat64) {
      check_equations(p, forward);
      check_slopes(p, forward, backward, random, quick ? 1 : 3);
      check_options(p, forward, backward);
      check_single_step(p, forward, backward);
      exact_forward = std::move(forward);
      exact_backward = std::move(backward);
    } else {
      expect_near(p, format, false, forward, exact_forward);
      expect_near(p, format, true, backward, exact_backward);
    }
  }
}

// ---- all of them

int64_t check_sizes(const Case& layout, Random& random, bool quick) {
  int64_t count = 0;
  for (int64_t T : {1, 3, 7}) {
    for (int64_t B : {1, 2, 9}) {
      for (int64_t H : {1, 5, 17, 40}) {
        if (quick && random.below(4) != 0) continue;
        for (bool projecting : {false, true}) {
          if (projecting && layout.kernels->reads_hidden) continue;
          Case c = layout;
          c.T = T, c.B = B, c.H = H, c.P = projecting ? (H + 2) / 3 : H;
          c.projecting = projecting;
          check_problem(Problem(c, random.below(1u << 30)), random, quick);
          ++count;
        }
      }
    }
  }
  return count;
}

int64_t check_cell(const std::string& name, bool quick) {
  int64_t count = 0;
  Random random(1);
  Case c{};
  c.cell = name;
  c.kernels = find_cell(name.c_str());
  if (c.kernels == nullptr) return 0;  // not built for this instruction set
  for (int kind = 0; kind < 8; ++kind) {
    c.ragged = (kind & 1) != 0;
    c.resets = (kind & 2) != 0;
    c.reverse = (kind & 4) != 0;
    count += check_sizes(c, random, quick);
  }
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
  if (argc > 1 && !quick) return fprintf(stderr, "usage: check_kernels [--quick]\n"), 2;
#ifdef _OPENMP
  omp_set_dynamic(0);  // use the given number of threads, whatever the machine has: their borders are under test
  omp_set_num_threads(kTeam);
#endif
  set_poison(true);
  for (int k = 0; k < capability_count(); ++k) {
    if (!set_capability(capability_name(k))) {
      printf("%s: not checked, this processor lacks it\n", capability_name(k));
      continue;
    }
    std::string done;
    for (int c = 0; cell_name(c) != nullptr; ++c) {
      done += std::string(" ") + cell_name(c) + " " + std::to_string(check_cell(cell_name(c), quick));
      if (!has_equations(cell_name(c))) done += " (no equations)";
    }
    printf("%s: passed, problems by cell:%s\n", capability(), done.c_str());
    fflush(stdout);
  }
  return 0;
}
