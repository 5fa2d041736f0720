// Threads for a time loop: one parallel region a sequence, and a barrier cheap enough for every step.
#pragma once

#include <stdint.h>

#include "cpu/args.h"

namespace fastrnn {

struct Barrier;

// How a member goes on after a barrier.
enum class Next : int {
  kTogether,
  kAlone,  // with all the work, for good: the others have left
  kLeave,
};

// One thread's view of the team that runs a sequence.
struct FASTRNN_SHARED Member {
  int rank;
  int size;
  Barrier* barrier;
  int64_t round = 0;
  bool slow = false;
  int64_t begin = 0, waited_so_far = 0;  // nanoseconds, since the first barrier

  // Waits for all members. Spins briefly, then yields its core: a team that lost a core to another process goes on.
  // If that happens, the first member goes on alone from the next barrier on: a barrier a step with a thread that has
  // its core only now and then costs a time slice of the scheduler each time.
  Next wait();

 private:
  // Whether the first member, which has waited since then (-1: hardly), had better go on alone. Threads that all have a
  // core differ too, by a part of what a stage takes (that of weights in main memory: milliseconds); and before the
  // first barrier, where memory is touched for the first time, by any amount.
  bool gives_up(int64_t since);
};

// Runs body(context, member) on up to `threads` threads of torch's own OpenMP pool (fewer if the runtime grants fewer),
// the caller included, and returns when all are done. With one thread, or inside a parallel region, it is a plain call.
// All round as the caller does, or bits would depend on the thread that had computed them, and all flush subnormal
// numbers to zero (float_mode.h).
FASTRNN_SHARED void run_team(int threads, void (*body)(void* context, Member& member), void* context);

// How many cache lines of other members a member reads in Member::wait().
int barrier_lines(int members);

// How long the first member waits for another at least before it prefers to go on alone. For tests.
void set_patience(int64_t nanoseconds);

}  // namespace fastrnn
