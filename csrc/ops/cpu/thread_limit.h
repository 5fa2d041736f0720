// Thread limit of an operator.
#pragma once

#include <stdint.h>

namespace fastrnn {

// Work of an operator: for each row of each time step `width` gate values, each from `depth` inputs (x and h).
struct LayerWork {
  int64_t rows, width, depth;
  int times = 1;
};

// While alive, limits this thread to one OpenMP thread if that is faster for the job because other processes compete
// for the cores (cpu/contention.h). At its end the elapsed time is evaluated.
class ThreadLimit {
 public:
  explicit ThreadLimit(const LayerWork& work);
  ~ThreadLimit();
  ThreadLimit(const ThreadLimit&) = delete;
  ThreadLimit& operator=(const ThreadLimit&) = delete;

  // The number of threads that torch was set to, irrespective of the current limit.
  static int threads();
  // Return true if the current limit is one thread.
  static bool alone();

  // Limits one of several threads that have a job each to one OpenMP thread while alive; threads() returns `threads`.
  class OneOfSeveral {
   public:
    explicit OneOfSeveral(int threads);
    ~OneOfSeveral();
    OneOfSeveral(const OneOfSeveral&) = delete;
    OneOfSeveral& operator=(const OneOfSeveral&) = delete;

   private:
    int before_, openmp_;
  };

  // Disables the BLAS library's own threads on this thread.
  class Single {
   public:
    Single();
    ~Single();
    Single(const Single&) = delete;
    Single& operator=(const Single&) = delete;

   private:
    int openmp_, mkl_ = 0;
  };

 private:
  int threads_ = 0;  // previous setting; 0: unchanged
  double expected_;  // expected seconds with one thread
  int64_t begin_;
};

}  // namespace fastrnn
