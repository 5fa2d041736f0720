// Detection of contention: other processes compete for the cores of our threads.
//
// A parallel region ends when its last thread has finished, and a thread whose core is taken runs only after a time
// slice of the scheduler, which is milliseconds. A job of microseconds is therefore faster on one thread under
// contention; one of many milliseconds is not. Signs of contention are a thread that starts late in a region, a long
// wait at a barrier, and a call that takes far longer than its arithmetic. After such a sign short jobs run on one
// thread for a period, then threads are tried again; each failure doubles the period.
#pragma once

#include <stdint.h>

#include "cpu/args.h"

namespace fastrnn {

// Time of a monotonic clock
FASTRNN_SHARED int64_t nanoseconds();

// Reports that an operation took much longer than with a core for each thread.
FASTRNN_SHARED void report_contention();

// Called after a long wait at a barrier. Returns true if the previous one was only a few time slices ago; a single wait
// may be due to the system itself.
FASTRNN_SHARED bool long_wait_again();

// Return true if a job that takes one thread this long should run on one thread.
FASTRNN_SHARED bool better_alone(double seconds);

// For tests: clears the history, or behaves as if contention had just been detected.
FASTRNN_SHARED void set_contention(bool seen);

// Start time of a parallel region; its threads report their arrival.
class Watch {
 public:
  Watch();
  void arrived() const;

 private:
  int64_t begin_;
};

}  // namespace fastrnn
