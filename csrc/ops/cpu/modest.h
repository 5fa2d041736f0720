// How many threads an operator starts.
#pragma once

#include <stdint.h>

namespace fastrnn {

// What an operator computes: for each row of each step so many gate values, each from so many inputs (x and h).
struct LayerWork {
  int64_t rows, width, depth;
  int times = 1;
};

// For its life the calling thread starts no others if that is better for such a job, because other programs want the
// cores (cpu/crowd.h). At its end the time that passed is looked at.
class Modest {
 public:
  explicit Modest(const LayerWork& work);
  ~Modest();
  Modest(const Modest&) = delete;
  Modest& operator=(const Modest&) = delete;

  // The number of threads that torch was told to use, whatever is the case just now.
  static int threads();
  // Whether there shall be but one now.
  static bool alone();

  // One of several threads that have a job each, for its life: starts no others, whatever `threads` says torch was
  // told.
  class OneOfSeveral {
   public:
    explicit OneOfSeveral(int threads);
    ~OneOfSeveral();
    OneOfSeveral(const OneOfSeveral&) = delete;
    OneOfSeveral& operator=(const OneOfSeveral&) = delete;

   private:
    int before_, openmp_;
  };

  // The library's own threads are off on this thread.
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
  int threads_ = 0;  // what was said before; 0: nothing was changed
  double expected_;  // seconds, with one thread
  int64_t begin_;
};

}  // namespace fastrnn
