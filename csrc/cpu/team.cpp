#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "cpu/crowd.h"
#include "cpu/float_mode.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastrnn {

namespace {

constexpr int kMostMembers = 256;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 20 µs: longer than a step in which all members have a core, far shorter than a scheduler's time slice.
constexpr int kSpins = 500;

std::atomic<int64_t> patience{500'000};

}  // namespace

void set_patience(int64_t nanoseconds) { patience = nanoseconds; }

// Each member announces the round it has come to, in a cache line of its own, and reads the others': a line travels
// once from core to core. The lowest bit of the first member's says that it goes on alone.
struct Barrier {
  struct alignas(64) Place {
    std::atomic<int64_t> announced{0};
  };
  Place places[kMostMembers];
};

Next Member::wait() {
  if (size == 1) return Next::kTogether;
  ++round;
  barrier->places[rank].announced.store(round * 2 + (slow ? 1 : 0), std::memory_order_release);
  int64_t since = -1;
  for (int other = 0; other < size; ++other) {
    const std::atomic<int64_t>& place = barrier->places[other].announced;
    for (int spins = 0; place.load(std::memory_order_acquire) / 2 < round; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        if (since < 0) since = nanoseconds();
        std::this_thread::yield();
      }
    }
  }
  if (rank != 0) {
    return barrier->places[0].announced.load(std::memory_order_acquire) == round * 2 + 1 ? Next::kLeave
                                                                                         : Next::kTogether;
  }
  if (slow) return Next::kAlone;
  slow = gives_up(since);
  return Next::kTogether;
}

bool Member::gives_up(int64_t since) {
  const int64_t most = patience.load(std::memory_order_relaxed);
  if (most <= 0) return true;
  if (round == 1) {
    begin = nanoseconds();
    return false;
  }
  if (since < 0) return false;
  const int64_t waited = nanoseconds() - since, stage = (since - begin - waited_so_far) / (round - 1);
  waited_so_far += waited;
  if (waited <= std::max(most, stage) || !long_wait_again()) return false;
  report_crowd();
  return true;
}

void run_team(int threads, void (*body)(void*, Member&), void* context) {
  const uint64_t mode = FloatMode::flushing();
#ifdef _OPENMP
  if (threads > 1 && !omp_in_parallel()) {
    Barrier barrier;
    const int most = threads < kMostMembers ? threads : kMostMembers;
    const Watch region;
    // No num_threads clause: a team of another size than the last makes GOMP rebuild its pool. Threads too many return.
#pragma omp parallel
    {
      const int granted = omp_get_num_threads();
      const int size = granted < most ? granted : most;
      const int rank = omp_get_thread_num();
      if (rank < size) {
        region.arrived();
        const FloatMode same(mode);  // not before the region: threads that it makes keep the mode of their maker
        Member member{rank, size, &barrier};
        body(context, member);
      }
    }
    return;
  }
#endif
  (void)threads;
  const FloatMode same(mode);
  Barrier* none = nullptr;
  Member member{0, 1, none};
  body(context, member);
}

}  // namespace fastrnn
