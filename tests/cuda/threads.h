// Internals of the emulator: threads, blocks and clusters of the running launch, and the functions through which
// memory_check.cpp observes them.
#pragma once

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "fiber.h"
#include "launcher.h"
#include "memory.h"

namespace fastrnn::emulator {

enum class State { kReady, kSync, kClusterWait, kProduct, kCounter, kPushes, kGone };

struct BlockState;

struct Thread : ThreadView {
  BlockState* block = nullptr;
  Fiber* fiber = nullptr;
  State state = State::kReady;
  Place at{"", 0};       // where it waits
  bool arrived = false;  // arrived at the cluster's barrier, and has not waited there
  uint64_t barrier = 0;  // the cluster's barrier at which it arrived
  const uint32_t* counter = nullptr;
  uint32_t target = 0;
  float* sum = nullptr;  // its part of a product
  uint32_t factors[6] = {};
  // memory_check.cpp: how often it has released its writes, and how far it knows each block to have progressed.
  uint32_t interval = 0;
  std::vector<uint32_t> known;
};

// A barrier of pushes. A phase ends when its one arrival and all expected bytes have come.
struct PushState {
  bool arrived = false;
  int64_t bytes = 0;  // expected and not yet pushed; negative if pushes came first
  uint32_t phase = 0;
  std::vector<Thread*> waiting;
  std::vector<uint32_t> released;  // memory_check.cpp
};

// One warp's product in progress.
struct Warp {
  int lanes = 0;  // that have arrived
  Kind kind = Kind::kBFloat16;
  Place at{"", 0};
};

struct Cluster {
  std::vector<BlockState*> blocks;
  int arrived = 0, gone = 0, threads = 0;
  uint64_t barrier = 0;
  Place at{"", 0};
  std::vector<uint32_t> released, acquired;  // memory_check.cpp
};

struct BlockState {
  int64_t number = 0;
  int syncing = 0, gone = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready;
  Cluster* cluster = nullptr;
  Buffer* shared = nullptr;
};

class Launch {
 public:
  Launch(const Grid& grid, Entry entry, const void* arguments);
  int run();

  Thread& running() { return *running_; }
  [[noreturn]] void fail(const std::string& what);
  void wait(State state, Place at);
  void wake(Thread& thread);
  bool chance(uint32_t one_in) { return random_() % one_in == 0; }
  int64_t blocks() const { return grid_.x * grid_.y; }

  std::vector<Thread*> counting;  // threads that wait for a counter
  std::map<const void*, PushState> pushes;

 private:
  static void main_of_thread(void* thread);
  void begin(int64_t cluster);
  void leave(Thread& thread);
  void retire();
  Thread* choose();
  std::string stuck() const;

  Grid grid_;
  Entry entry_;
  const void* arguments_;
  std::minstd_rand random_;
  // Scheduling: blocks in turn or one for as long as it can run; threads at random, last first or first first.
  uint32_t stay_, order_;
  std::vector<int64_t> waiting_;  // clusters (or single blocks) that have not started
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<std::unique_ptr<BlockState>> resident_;
  size_t favourite_ = 0;
  Thread* running_ = nullptr;
  bool failed_ = false;
};

// The running launch; null outside of one.
Launch* current();

// Functions of memory_check.cpp, where it is built in.
void note_sync(BlockState& block);
void note_arrival(Thread& thread);
void note_cluster_barrier(Cluster& cluster);
void note_wait(Thread& thread);
void note_announcement(Thread& thread, const uint32_t* counter);
void note_count(Thread& thread, const uint32_t* counter);
// The running thread has pushed 16 bytes to `target`; a thread has awaited a barrier.
void note_push(PushState& state, Thread& thread, const void* target);
void note_pushes(const PushState& state, Thread& thread);
std::string note_exit(BlockState& block);  // the error, or empty
void note_launch();

}  // namespace fastrnn::emulator
