// Threads for a time loop: one parallel region a sequence, and a barrier cheap enough for every step.
#pragma once

#include <stdint.h>

namespace fastrnn {

struct Barrier;

// One thread's view of the team that runs a sequence.
struct Member {
  int rank;
  int size;
  Barrier* barrier;

  // Waits for all members. Spins briefly, then yields its core: a team that lost a core to another process goes on.
  void wait() const;
};

// Runs body(context, member) on up to `threads` threads of torch's own OpenMP pool (fewer if the runtime grants fewer),
// the caller included, and returns when all are done. With one thread, or inside a parallel region, it is a plain call.
void run_team(int threads, void (*body)(void* context, const Member& member), void* context);

}  // namespace fastrnn
