#include "ops/cpu/thread_limit.h"

#include <ATen/Parallel.h>

#include "cpu/contention.h"

#ifdef _OPENMP
#include <omp.h>
#endif

// MKL inside torch, if present: torch.set_num_threads sets its thread count, which omp_set_num_threads does not change.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));  // lower case: the Fortran interface

namespace fastrnn {

namespace {

constexpr double kMultiplyAddsPerSecond = 4e10;
// Time of the element-wise stage for a SIMD vector of units; and for each gate value the time to write it and its share
// of the outputs to memory that is mapped on first use, at 2 GB/s. They dominate for layers of a few units.
constexpr double kCellSeconds = 4e-8, kGateSeconds = 4e-9;
constexpr int64_t kGatesOfCell = 64;
// Far above the cost of page faults and of first calls of a library
constexpr double kTimesExpected = 8, kSlack = 2e-3;

thread_local int torch_threads = 0;  // torch's number of threads while this thread is limited to one, else 0

double seconds(const LayerWork& work) {
  const auto width = static_cast<double>(work.width), depth = static_cast<double>(work.depth);
  const auto cells = static_cast<double>((work.width + kGatesOfCell - 1) / kGatesOfCell);
  const double row = width * depth / kMultiplyAddsPerSecond + cells * kCellSeconds + width * kGateSeconds;
  return work.times * static_cast<double>(work.rows) * row;
}

void set_openmp_threads(int n) {
#ifdef _OPENMP
  omp_set_num_threads(n);  // for regions opened by this thread only, unlike torch.set_num_threads
#else
  (void)n;
#endif
}

}  // namespace

ThreadLimit::ThreadLimit(const LayerWork& work) : expected_(seconds(work)), begin_(nanoseconds()) {
  if (torch_threads > 0 || !better_alone(expected_) || at::in_parallel_region()) return;
  torch_threads = threads_ = at::get_num_threads();
  set_openmp_threads(1);
}

ThreadLimit::~ThreadLimit() {
  if (threads_ > 0) {
    torch_threads = 0;
    set_openmp_threads(threads_);
    return;
  }
  const double passed = static_cast<double>(nanoseconds() - begin_) * 1e-9;
  if (torch_threads == 0 && passed > kTimesExpected * expected_ + kSlack) report_contention();
}

int ThreadLimit::threads() { return torch_threads > 0 ? torch_threads : at::get_num_threads(); }
bool ThreadLimit::alone() { return torch_threads > 0; }

ThreadLimit::OneOfSeveral::OneOfSeveral(int threads) : before_(torch_threads), openmp_(at::get_num_threads()) {
  torch_threads = threads;
  set_openmp_threads(1);
}

ThreadLimit::OneOfSeveral::~OneOfSeveral() {
  torch_threads = before_;
  set_openmp_threads(openmp_);
}

ThreadLimit::Single::Single() : openmp_(at::get_num_threads()) {
  set_openmp_threads(1);
  if (MKL_Set_Num_Threads_Local != nullptr) mkl_ = MKL_Set_Num_Threads_Local(1);
}

ThreadLimit::Single::~Single() {
  set_openmp_threads(openmp_);
  if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(mkl_);
}

}  // namespace fastrnn
