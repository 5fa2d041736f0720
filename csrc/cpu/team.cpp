#include "cpu/team.h"

#include <atomic>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastrnn {

namespace {

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 20 µs: longer than a step in which all members have a core, far shorter than a scheduler's time slice.
constexpr int kSpins = 500;

}  // namespace

struct Barrier {
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> round{0};
};

void Member::wait() const {
  if (size == 1) return;
  const int round = barrier->round.load(std::memory_order_relaxed);
  if (barrier->arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    barrier->arrived.store(0, std::memory_order_relaxed);
    barrier->round.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; barrier->round.load(std::memory_order_acquire) == round; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void run_team(int threads, void (*body)(void*, const Member&), void* context) {
  Barrier barrier;
#ifdef _OPENMP
  if (threads > 1 && !omp_in_parallel()) {
    // No num_threads clause: a team of another size than the last makes GOMP rebuild its pool. Threads too many return.
#pragma omp parallel
    {
      const int granted = omp_get_num_threads();
      const int size = granted < threads ? granted : threads;
      const int rank = omp_get_thread_num();
      if (rank < size) body(context, Member{rank, size, &barrier});
    }
    return;
  }
#endif
  (void)threads;
  body(context, Member{0, 1, &barrier});
}

}  // namespace fastrnn
