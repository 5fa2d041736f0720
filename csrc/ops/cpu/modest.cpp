#include "ops/cpu/modest.h"

#include <ATen/Parallel.h>

#include "cpu/crowd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

// Of the MKL inside torch, where there is one: torch.set_num_threads tells it a number that OpenMP's does not change.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));  // (in small letters it is Fortran's)

namespace fastrnn {

namespace {

constexpr double kMultiplyAddsPerSecond = 4e10;
// The cell on a vector of units; and of a gate value what is written because of it (itself and a share of the outputs)
// to memory that the system has to find first, at 2 GB/s. All there is to a layer of a few units.
constexpr double kCellSeconds = 4e-8, kGateSeconds = 4e-9;
constexpr int64_t kGatesOfCell = 64;
// Far more than page faults and first calls of a library cost.
constexpr double kTimesExpected = 8, kSlack = 2e-3;

thread_local int asked = 0;  // torch's number of threads while this thread is alone, else 0

double seconds(const LayerWork& work) {
  const auto width = static_cast<double>(work.width), depth = static_cast<double>(work.depth);
  const auto cells = static_cast<double>((work.width + kGatesOfCell - 1) / kGatesOfCell);
  const double row = width * depth / kMultiplyAddsPerSecond + cells * kCellSeconds + width * kGateSeconds;
  return work.times * static_cast<double>(work.rows) * row;
}

void set_openmp_threads(int n) {
#ifdef _OPENMP
  omp_set_num_threads(n);  // of regions that this thread opens; unlike torch.set_num_threads, nobody else's
#else
  (void)n;
#endif
}

}  // namespace

Modest::Modest(const LayerWork& work) : expected_(seconds(work)), begin_(nanoseconds()) {
  if (asked > 0 || !better_alone(expected_) || at::in_parallel_region()) return;
  asked = threads_ = at::get_num_threads();
  set_openmp_threads(1);
}

Modest::~Modest() {
  if (threads_ > 0) {
    asked = 0;
    set_openmp_threads(threads_);
    return;
  }
  const double passed = static_cast<double>(nanoseconds() - begin_) * 1e-9;
  if (asked == 0 && passed > kTimesExpected * expected_ + kSlack) report_crowd();
}

int Modest::threads() { return asked > 0 ? asked : at::get_num_threads(); }
bool Modest::alone() { return asked > 0; }

Modest::OneOfSeveral::OneOfSeveral(int threads) : before_(asked), openmp_(at::get_num_threads()) {
  asked = threads;
  set_openmp_threads(1);
}

Modest::OneOfSeveral::~OneOfSeveral() {
  asked = before_;
  set_openmp_threads(openmp_);
}

Modest::Single::Single() : openmp_(at::get_num_threads()) {
  set_openmp_threads(1);
  if (MKL_Set_Num_Threads_Local != nullptr) mkl_ = MKL_Set_Num_Threads_Local(1);
}

Modest::Single::~Single() {
  set_openmp_threads(openmp_);
  if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(mkl_);
}

}  // namespace fastrnn
