// Threads for a time loop: one parallel region per sequence, and a barrier cheap enough for every step.
#pragma once

#include <stdint.h>

#include "cpu/args.h"

namespace fastrnn {

struct Barrier;

// Continuation of a member after a barrier
enum class Next : int {
  kTogether,
  kAlone,  // with all the work, permanently: the others have left
  kLeave,
};

// One thread's view of the team that runs a sequence
struct FASTRNN_SHARED Member {
  int rank;
  int size;
  Barrier* barrier;
  int64_t round = 0;
  bool slow = false;
  int64_t begin = 0, waited_so_far = 0;  // nanoseconds, since the first barrier

  // Waits for all members. Spins briefly, then yields its core, so that a team that lost a core to another process
  // makes progress. If that happens, the first member continues alone from the next barrier on: with a thread that has
  // its core only now and then, every barrier costs a time slice of the scheduler.
  Next wait();

 private:
  // Return true if the first member, which has waited since then (-1: hardly), should continue alone. Threads that all
  // have a core also differ, by a fraction of a stage's time (milliseconds for weights in main memory); and before the
  // first barrier, where memory is touched for the first time, by any amount.
  bool gives_up(int64_t since);
};

// Runs body(context, member) on up to `threads` threads of torch's OpenMP pool (fewer if the runtime grants fewer),
// including the caller, and returns when all are done. With one thread, or inside a parallel region, it is a plain
// call. All threads round as the caller does, because bits must not depend on the thread, and all flush subnormal
// numbers to zero (float_mode.h).
FASTRNN_SHARED void run_team(int threads, void (*body)(void* context, Member& member), void* context);

// Number of other members' cache lines that a member reads in Member::wait()
int barrier_lines(int members);

// Minimum time that the first member waits for another before it continues alone (for tests)
FASTRNN_SHARED void set_patience(int64_t nanoseconds);

}  // namespace fastrnn
