#include "cpu/plan.h"

#include <algorithm>

#ifdef __unix__
#include <unistd.h>
#endif

namespace fastrnn {

namespace {

// Orders of magnitude of a current core. Only their ratios matter, and only near a border between two plans.
constexpr double kMultiplyAddsPerSecond = 8e10;
constexpr double kNearBytesPerSecond = 1.2e11;  // weights in the second-level cache
constexpr double kFarBytesPerSecond = 2e10;     // weights beyond it
constexpr double kKept = 0.7;                   // of that cache, by weights from one step to the next
constexpr double kBarrierSeconds = 5e-7;
constexpr double kExchangeBytesPerSecond = 1e10;  // what one core wrote, read by another
constexpr double kRegionSeconds = 5e-6;           // entering and leaving a parallel region
constexpr double kGain = 0.9;                     // a plan with more threads must promise at least this much

double step_seconds(double rows, double depth, double columns, const StepWork& work) {
  const double bytes = depth * columns * work.element;
  // Sweeps go back and forth, so that what the last one read at its end is still near.
  const double far = std::max(0.0, bytes - kKept * near_cache_bytes());
  const double read = (bytes - far) / kNearBytesPerSecond + far / kFarBytesPerSecond;
  const double arithmetic = rows * depth * columns / (work.speed * kMultiplyAddsPerSecond);
  return std::max(read, arithmetic);
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

  const auto rows = static_cast<double>(work.rows), depth = static_cast<double>(work.depth);
  const auto columns = static_cast<double>(work.columns);
  const double region = kRegionSeconds / static_cast<double>(seq.steps);
  const double one = step_seconds(rows, depth, columns, work);
  const double by_rows = region + step_seconds((work.rows + row_threads - 1) / row_threads, depth, columns, work);
  const double exchange = rows * depth * work.element * (threads - 1) / threads / kExchangeBytesPerSecond;
  const double by_units =
      region + step_seconds(rows, depth, columns / threads, work) + work.barriers * kBarrierSeconds + exchange;
  if (std::min(by_rows, by_units) > kGain * one) return {Split::kNone, 1};
  return by_rows <= by_units ? Plan{Split::kRows, row_threads} : Plan{Split::kUnits, threads};
}

}  // namespace fastrnn
