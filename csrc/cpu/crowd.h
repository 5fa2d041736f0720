// Whether other programs want the cores that our threads run on.
//
// A parallel region ends when its last thread has run, and a thread whose core is taken runs only after a time slice of
// the scheduler: milliseconds. So a job of microseconds is better done by one thread while the machine is crowded, and
// one of many milliseconds is not. Signs of a crowd are a thread that arrives late in a region, a long wait at a
// barrier, and a call that took far longer than its arithmetic. After such a sign short jobs stay on one thread for a
// while, then threads are tried again; each failure doubles the while.
#pragma once

#include <stdint.h>

namespace fastrnn {

// Of a clock that only goes forward.
int64_t nanoseconds();

// Something took much longer than it does with a core for each thread.
void report_crowd();

// To be called after a long wait at a barrier. Whether the last one is but a few time slices ago: a single one may be
// the system's own work, and is over.
bool long_wait_again();

// Whether a job that takes one thread so many seconds should have but one thread.
bool better_alone(double seconds);

// For tests: forget what was seen, or behave as if a crowd had just been seen.
void set_crowd(bool seen);

// The begin of a parallel region, for its threads to say when they are there.
class Watch {
 public:
  Watch();
  void arrived() const;

 private:
  int64_t begin_;
};

}  // namespace fastrnn
