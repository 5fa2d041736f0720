// Conditions for dissolving a team: neither weights that take long to pack, nor one thread's longer part of a long
// stage, but a thread that is late again and again in stages that end at once.
#include <stdio.h>

#include <chrono>
#include <thread>

#include "cpu/contention.h"
#include "cpu/team.h"

namespace fastrnn {

void run_team(int threads, void (*body)(void* context, Member& member), void* context);

namespace {

struct Stages {
  int64_t count, length;  // of stages; of one stage in milliseconds, like all that follows
  int64_t late_first;     // how much longer the second member takes for the first stage
  int64_t late;           // and for each later one
  int64_t together = 0;   // stages after which both members continue
};

void work(void* context, Member& member) {
  auto& stages = *static_cast<Stages*>(context);
  bool alone = false;
  for (int64_t n = 0; n < stages.count; ++n) {
    const int64_t more = member.rank == 0 ? 0 : (n == 0 ? stages.late_first : stages.late);
    std::this_thread::sleep_for(std::chrono::milliseconds(stages.length + more));
    if (alone) continue;
    const Next next = member.wait();
    if (next == Next::kLeave) return;
    alone = next == Next::kAlone;
    if (member.rank == 0 && !alone) ++stages.together;
  }
}

Stages run(Stages stages) {
  set_contention(false);
  run_team(2, &work, &stages);
  return stages;
}

// Checks whether the team stays together; repeated because other programs may delay a team that should.
int check(const char* what, Stages stages, bool stays) {
  for (int attempt = 0; attempt < 5; ++attempt) {
    const Stages found = run(stages);
    if ((found.together == found.count) == stays && better_alone(0) != stays) return 0;
    printf("%s: %d of %d stages together, contention %s\n", what, static_cast<int>(found.together),
           static_cast<int>(found.count), better_alone(0) ? "seen" : "not seen");
  }
  return 1;
}

}  // namespace
}  // namespace fastrnn

int main() {
  using namespace fastrnn;
  return check("long stages", {12, 8, 30, 3}, true) + check("short stages", {30, 0, 5, 5}, false);
}
