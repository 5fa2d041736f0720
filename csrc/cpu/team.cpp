#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "cpu/contention.h"
#include "cpu/float_mode.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastrnn {

namespace {

constexpr int kMostMembers = 256;
constexpr int kGroup = 8;  // members that one of them awaits for all others, in larger teams

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 20 µs: longer than a step in which all members have a core, far shorter than a time slice of the scheduler
constexpr int kSpins = 500;

std::atomic<int64_t> patience{500'000};

}  // namespace

void set_patience(int64_t nanoseconds) { patience = nanoseconds; }

// Each member announces the round it has reached, in its own cache line, and reads those of the others: a line travels
// once from core to core. In a team of more than kGroup members only the first of a group reads its members' lines; it
// then announces the group, and all read the groups' lines. What a member wrote before it announced a round is seen by
// all who have passed it, as reads acquire what the group's first has acquired and released. The lowest bit of the
// first member's line signals that it continues alone.
struct Barrier {
  struct alignas(64) Place {
    std::atomic<int64_t> announced{0};
  };
  Place places[kMostMembers];
  Place groups[kMostMembers / kGroup];

  // Returns when lines begin…end have announced `round`. `since`: set to the time at which it began to yield its core.
  static void await(const Place* lines, int begin, int end, int64_t round, int64_t& since) {
    for (int k = begin; k < end; ++k) {
      for (int spins = 0; lines[k].announced.load(std::memory_order_acquire) / 2 < round; ++spins) {
        if (spins < kSpins) {
          pause();
        } else {
          if (since < 0) since = nanoseconds();
          std::this_thread::yield();
        }
      }
    }
  }
};

int barrier_lines(int members) {
  return members <= kGroup ? members - 1 : kGroup - 1 + (members + kGroup - 1) / kGroup + 1;
}

Next Member::wait() {
  if (size == 1) return Next::kTogether;
  ++round;
  barrier->places[rank].announced.store(round * 2 + (slow ? 1 : 0), std::memory_order_release);
  int64_t since = -1;
  if (size <= kGroup) {
    Barrier::await(barrier->places, 0, size, round, since);
  } else {
    const int group = rank / kGroup, first = group * kGroup;
    if (rank == first) {
      Barrier::await(barrier->places, first, std::min(first + kGroup, size), round, since);
      barrier->groups[group].announced.store(round * 2, std::memory_order_release);
    }
    Barrier::await(barrier->groups, 0, (size + kGroup - 1) / kGroup, round, since);
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
  report_contention();
  return true;
}

void run_team(int threads, void (*body)(void*, Member&), void* context) {
  const uint64_t mode = FloatMode::flushing();
#ifdef _OPENMP
  if (threads > 1 && !omp_in_parallel()) {
    Barrier barrier;
    const int most = threads < kMostMembers ? threads : kMostMembers;
    const Watch region;
    // No num_threads clause: a team of another size than the last makes GOMP rebuild its pool. Excess threads return.
#pragma omp parallel
    {
      const int granted = omp_get_num_threads();
      const int size = granted < most ? granted : most;
      const int rank = omp_get_thread_num();
      if (rank < size) {
        region.arrived();
        const FloatMode same(mode);  // inside the region: new threads would keep the mode of their creator
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
