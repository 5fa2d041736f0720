// Replacement of csrc/cpu/team.cpp with std::thread and the real barrier, compiled without OpenMP: for ThreadSanitizer,
// which does not see how an OpenMP runtime that was not built for it orders its threads.
#define run_team run_team_alone
#include "cpu/team.cpp"
#undef run_team

#include <vector>

namespace fastrnn {

void run_team(int threads, void (*body)(void* context, Member& member), void* context);

void run_team(int threads, void (*body)(void* context, Member& member), void* context) {
  Barrier barrier;
  std::vector<std::thread> others;
  for (int rank = 1; rank < threads; ++rank) {
    others.emplace_back([=, &barrier] {
      Member member{rank, threads, &barrier};
      body(context, member);
    });
  }
  Member member{0, threads, &barrier};
  body(context, member);
  for (std::thread& other : others) other.join();
}

}  // namespace fastrnn
