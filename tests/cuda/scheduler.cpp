// Choice of the thread that runs next, and start and end of blocks.
#include <stdio.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "threads.h"

namespace fastrnn::emulator {

namespace {

Launch* the_launch = nullptr;
std::string the_failure;

FiberPool& fibers() {
  static FiberPool pool;
  return pool;
}

const char* file_name(const char* path) {
  const char* name = path;
  for (const char* p = path; *p != 0; ++p) {
    if (*p == '/') name = p + 1;
  }
  return name;
}

const char* waits_for(State state) {
  switch (state) {
    case State::kSync:
      return "wait at the block's barrier";
    case State::kClusterWait:
      return "wait at the cluster's barrier";
    case State::kProduct:
      return "wait for their warp's product";
    case State::kCounter:
      return "wait for a counter";
    case State::kPushes:
      return "wait for what others push";
    default:
      return "can run";
  }
}

}  // namespace

Settings& settings() {
  static Settings instance;
  return instance;
}
Counted& counted() {
  static Counted instance{};
  return instance;
}
const std::string& failure() { return the_failure; }
void forget_failure() { the_failure.clear(); }
Launch* current() { return the_launch; }

Launch::Launch(const Grid& grid, Entry entry, const void* arguments)
    : grid_(grid),
      entry_(entry),
      arguments_(arguments),
      random_(static_cast<uint32_t>(settings().seed * 2654435761u % 2147483646u + 1)) {
  random_.discard(4);
  constexpr uint32_t kStay[] = {1, 64, 4096};
  stay_ = kStay[random_() % 3];
  order_ = static_cast<uint32_t>(random_() % 3);
  const int64_t each = std::max(grid.cluster, 1);
  waiting_.resize(static_cast<size_t>(blocks() / each));
  std::iota(waiting_.begin(), waiting_.end(), 0);
  std::shuffle(waiting_.begin(), waiting_.end(), random_);
}

void Launch::main_of_thread(void* p) {
  Thread& thread = *static_cast<Thread*>(p);
  cuda::Block block{thread};
  Launch& launch = *the_launch;
  launch.entry_(block, launch.arguments_);
  launch.leave(thread);
}

void Launch::begin(int64_t which) {
  const int64_t each = std::max(grid_.cluster, 1);
  clusters_.push_back(std::make_unique<Cluster>());
  Cluster& cluster = *clusters_.back();
  cluster.threads = static_cast<int>(each) * grid_.threads;
  for (int64_t rank = 0; rank < each; ++rank) {
    resident_.push_back(std::make_unique<BlockState>());
    BlockState& block = *resident_.back();
    block.number = which * each + rank;
    block.cluster = &cluster;
    block.shared = &memory().allocate("shared memory", grid_.shared_bytes, 16, block.number);
    block.threads.resize(static_cast<size_t>(grid_.threads));
    block.warps.resize(static_cast<size_t>(grid_.threads + 31) / 32);
    for (int k = 0; k < grid_.threads; ++k) {
      Thread& thread = block.threads[static_cast<size_t>(k)];
      static_cast<ThreadView&>(thread) = {
          k,       grid_.threads,      static_cast<int>(rank), block.number % grid_.x, block.number / grid_.x,
          grid_.x, block.shared->begin};
      thread.block = &block;
      thread.fiber = fibers().take();
      thread.fiber->start(&Launch::main_of_thread, &thread);
      block.ready.push_back(&thread);
    }
    cluster.blocks.push_back(&block);
  }
}

Thread* Launch::choose() {
  if (resident_.empty()) return nullptr;
  if (stay_ == 1 || chance(stay_)) favourite_ = random_() % resident_.size();
  for (size_t k = 0; k < resident_.size(); ++k) {
    std::vector<Thread*>& ready = resident_[(favourite_ + k) % resident_.size()]->ready;
    if (ready.empty()) continue;
    favourite_ = (favourite_ + k) % resident_.size();
    // Occasionally any thread, whatever the order.
    const bool any = order_ == 0 || chance(128);
    if (any) {
      std::swap(ready[random_() % ready.size()], ready.back());
    } else if (order_ == 1) {
      std::swap(ready.front(), ready.back());
    }
    Thread* thread = ready.back();
    ready.pop_back();
    return thread;
  }
  return nullptr;
}

int Launch::run() {
  the_launch = this;
  const size_t before = memory().count(), each = static_cast<size_t>(std::max(grid_.cluster, 1));
  const auto most = static_cast<size_t>(settings().processors - settings().busy);
  note_launch();
  while (!failed_) {
    while (!waiting_.empty() && resident_.size() + each <= most) {
      begin(waiting_.back());
      waiting_.pop_back();
    }
    running_ = choose();
    if (running_ == nullptr && !resident_.empty()) {
      the_failure = stuck();
      failed_ = true;
    }
    if (running_ == nullptr) break;
    running_->fiber->resume();
    if (running_->state == State::kGone) retire();
  }
  for (const auto& block : resident_) {
    for (Thread& thread : block->threads) fibers().give(thread.fiber);
  }
  const std::string damaged = memory().damaged();
  if (!failed_ && !damaged.empty()) {
    the_failure = "something was written beside " + damaged;
    failed_ = true;
  }
  memory().shrink(before);
  the_launch = nullptr;
  return failed_ ? kFailed : 0;
}

// Removes clusters of which all threads have exited. Their shared memory stays until the end, marked.
void Launch::retire() {
  Cluster& cluster = *running_->block->cluster;
  BlockState& left = *running_->block;
  running_ = nullptr;
  if (left.gone < grid_.threads) return;
  const std::string wrong = note_exit(left);
  if (!wrong.empty() && !failed_) {
    the_failure = wrong;
    failed_ = true;
  }
  left.shared->gone = true;
  if (cluster.gone < cluster.threads) return;
  for (BlockState* block : cluster.blocks) {
    for (Thread& thread : block->threads) fibers().give(thread.fiber);
    const auto at =
        std::find_if(resident_.begin(), resident_.end(), [&](const auto& other) { return other.get() == block; });
    std::swap(*at, resident_.back());
    resident_.pop_back();
  }
}

void Launch::leave(Thread& thread) {
  BlockState& block = *thread.block;
  const Warp& warp = block.warps[static_cast<size_t>(thread.thread / 32)];
  thread.at = {"", 0};
  if (block.syncing > 0) fail("leaves while others wait at the block's barrier");
  if (thread.arrived) fail("leaves between arriving at the cluster's barrier and waiting");
  if (block.cluster->arrived > 0) fail("leaves while others are at the cluster's barrier");
  if (warp.lanes > 0) fail("leaves while others wait for their warp's product");
  ++block.gone;
  ++block.cluster->gone;
  wait(State::kGone, {"", 0});
}

void Launch::wait(State state, Place at) {
  Thread& thread = *running_;
  thread.state = state;
  thread.at = at;
  if (state == State::kReady) thread.block->ready.push_back(&thread);
  thread.fiber->suspend();
}

void Launch::wake(Thread& thread) {
  thread.state = State::kReady;
  thread.block->ready.push_back(&thread);
}

void Launch::fail(const std::string& what) {
  const Thread& t = *running_;
  char where[400];
  snprintf(where, sizeof(where), "block (%lld, %lld), thread %d%s%s%s%.0d: ", static_cast<long long>(t.x),
           static_cast<long long>(t.y), t.thread, t.at.line != 0 ? ", " : "", file_name(t.at.file),
           t.at.line != 0 ? ":" : "", t.at.line);
  the_failure = where + what;
  failed_ = true;
  t.fiber->suspend();
  __builtin_unreachable();
}

std::string Launch::stuck() const {
  std::map<std::tuple<int64_t, State, std::string>, int> groups;
  for (const auto& block : resident_) {
    for (const Thread& thread : block->threads) {
      if (thread.state == State::kGone) continue;
      const std::string place = file_name(thread.at.file) + (":" + std::to_string(thread.at.line));
      ++groups[{block->number, thread.state, place}];
    }
  }
  std::string text = "deadlock";
  int named = 0;
  for (const auto& [key, count] : groups) {
    if (named++ == 8) break;
    text += (named == 1 ? ": in block " : "; in block ") + std::to_string(std::get<0>(key)) + " " +
            std::to_string(count) + " threads " + waits_for(std::get<1>(key)) + " (" + std::get<2>(key) + ")";
  }
  return text;
}

int launch(const Grid& grid, Entry entry, const void* arguments) {
  const Settings& machine = settings();
  if (grid.x <= 0 || grid.y <= 0 || grid.y > 65535 || grid.threads <= 0 || grid.threads > 1024) return kInvalidValue;
  if (grid.shared_bytes > machine.shared_bytes) return kInvalidValue;
  if (grid.cluster > machine.largest_cluster || (grid.cluster > 0 && grid.x % grid.cluster != 0)) return kInvalidValue;
  if (std::max(grid.cluster, 1) > machine.processors - machine.busy) return kInvalidValue;
  if (grid.cooperative && grid.x * grid.y > capacity(grid.shared_bytes, 0)) return kTooLarge;
  const int error = Launch(grid, entry, arguments).run();
  ++settings().seed;
  return error;
}

int capacity(int64_t shared_bytes, int cluster) {
  const Settings& machine = settings();
  if (shared_bytes > machine.shared_bytes || cluster > machine.largest_cluster) return 0;
  const int free = machine.processors - machine.busy;
  return cluster > 0 ? free / cluster : free;
}

}  // namespace fastrnn::emulator
