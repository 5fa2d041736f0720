#include "cpu/plan.h"

#include <algorithm>

#include "cpu/team.h"

#ifdef __unix__
#include <unistd.h>
#endif

namespace fastrnn {

namespace {

// Orders of magnitude for a current core. Only their ratios matter, and only near the border between two plans.
constexpr double kMultiplyAddsPerSecond = 8e10;
constexpr double kNearBytesPerSecond = 1.2e11;    // weights in the L2 cache
constexpr double kFarBytesPerSecond = 2e10;       // weights beyond it, by one core
constexpr double kAllFarBytesPerSecond = 1.2e11;  // the same, by all cores together
constexpr double kKept = 0.7;                     // fraction of that cache that retains weights between steps
constexpr double kBarrierSeconds = 5e-7;          // of two threads
constexpr double kLineSeconds = 8e-8;             // each further cache line of another thread read in it
constexpr double kExchangeBytesPerSecond = 1e10;  // data written by one core and read by another
constexpr double kRegionSeconds = 5e-6;           // entering and leaving a parallel region
constexpr double kGain = 0.9;                     // upper limit of the time with more threads, as a fraction

// The time that the slowest of `threads` threads takes for its part.
double step_seconds(double rows, double columns, int threads, const StepWork& work) {
  const auto depth = static_cast<double>(work.depth);
  const double bytes = depth * columns * work.element;
  // Sweeps alternate in direction, so that the end of the previous one is still cached.
  const double far = std::max(0.0, bytes - kKept * near_cache_bytes());
  const double far_speed = std::min(kFarBytesPerSecond, kAllFarBytesPerSecond / threads);
  const double read = (bytes - far) / kNearBytesPerSecond + far / far_speed;
  const double arithmetic = rows * depth * columns / (work.speed * kMultiplyAddsPerSecond);
  return std::max(read, arithmetic);
}

double barrier_seconds(int threads) { return kBarrierSeconds + kLineSeconds * (barrier_lines(threads) - 1); }

struct Estimate {
  Plan plan;
  double seconds;
};

// The better way to share a step among so many threads.
Estimate estimate(const Sequence& seq, const StepWork& work, int threads) {
  const auto rows = static_cast<double>(work.rows), columns = static_cast<double>(work.columns);
  const double region = kRegionSeconds / static_cast<double>(seq.steps);
  const int row_threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, work.rows)));
  const auto most_rows = static_cast<double>((work.rows + row_threads - 1) / row_threads);
  const double by_rows = region + step_seconds(most_rows, columns, row_threads, work);
  const int unit_threads = static_cast<int>(std::min<int64_t>(threads, work.groups));
  const auto most_groups = static_cast<double>((work.groups + unit_threads - 1) / unit_threads);
  const double most_columns = columns * most_groups / static_cast<double>(work.groups);
  const double operand = rows * static_cast<double>(work.depth) * work.element;
  const double exchange = operand * (unit_threads - 1) / unit_threads / kExchangeBytesPerSecond;
  const double by_units = region + step_seconds(rows, most_columns, unit_threads, work) +
                          work.barriers * barrier_seconds(unit_threads) + exchange;
  if (by_rows <= by_units) return {{Split::kRows, row_threads}, by_rows};
  return {{Split::kUnits, unit_threads}, by_units};
}

}  // namespace

double near_cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return static_cast<double>(size);
#endif
  return 1 << 20;
}

Plan make_plan(const Sequence& seq, const StepWork& work) {
  const int threads = std::max(1, seq.threads);
  if (seq.split == Split::kNone || threads == 1) return {Split::kNone, 1};
  const int row_threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, work.rows)));
  if (seq.split == Split::kRows) return {Split::kRows, row_threads};
  if (seq.split == Split::kUnits) return {Split::kUnits, threads};

  const auto rows = static_cast<double>(work.rows), columns = static_cast<double>(work.columns);
  Estimate best{{Split::kNone, 1}, step_seconds(rows, columns, 1, work)};
  for (int more = 2; more < 2 * threads; more *= 2) {
    const Estimate found = estimate(seq, work, std::min(more, threads));
    if (found.seconds <= kGain * best.seconds) best = found;
  }
  return best.plan;
}

}  // namespace fastrnn
