// Checks every access of a kernel to the emulated memory. Kernels are compiled with gcc's -fsanitize=thread, which
// calls a function for each access; these functions replace those of the compiler's library. They find accesses outside
// buffers, to memory of a block that has exited and to memory that nothing has written, and races: two accesses, one of
// them a write, that no barrier orders, in whichever order the threads happened to run this time.
//
// Order is tracked by intervals (vector clocks). A thread's interval ends where it releases its accesses: at a barrier
// of the block, and when it arrives at one of the cluster. Pushes are writes of an additional actor per block, whose
// interval ends with each push: only a thread that awaits their barrier is ordered after them. known[b] = n: all
// threads of block b have done all accesses before their interval n. All threads of a block pass the same barriers, so
// that one number per block is enough.
#include "threads.h"

#if FASTRNN_MEMORY_CHECK

#include <algorithm>
#include <map>

namespace fastrnn::emulator {

namespace {

constexpr int kReaders = 8;
constexpr int16_t kNobody = -1, kSeveral = -2;

struct Access {
  int16_t block = kNobody, thread = kNobody;
  uint32_t interval = 0;
};

}  // namespace

struct Cell {
  Access write, reads[kReaders];  // at most one per block
  uint32_t launch = 0;
  bool written = false;
};

namespace {

constexpr int64_t kCellBytes = 2;
uint32_t launches = 0;
// Clocks that each counter's n-th announcement released, those of earlier announcements included.
std::map<const uint32_t*, std::vector<std::vector<uint32_t>>> announcements;
std::map<int64_t, uint32_t> pushed;  // by the actor of a block

void join(std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  if (a.size() < b.size()) a.resize(b.size());
  for (size_t k = 0; k < b.size(); ++k) a[k] = std::max(a[k], b[k]);
}
void know(std::vector<uint32_t>& known, int64_t block, uint32_t interval) {
  const auto at = static_cast<size_t>(block);
  if (known.size() <= at) known.resize(at + 1);
  known[at] = std::max(known[at], interval);
}
bool knows(const std::vector<uint32_t>& known, const Access& access) {
  const auto block = static_cast<size_t>(access.block);
  return block < known.size() && known[block] > access.interval;
}

bool before(const Access& access, const Thread& thread) {
  if (access.block == kNobody) return true;
  if (access.block == thread.block->number && access.thread == thread.thread) return true;
  return knows(thread.known, access);
}

std::string name_of(const Access& access) {
  const std::string block = "of block " + std::to_string(access.block);
  return access.thread == kSeveral ? "several threads " + block
                                   : "thread " + std::to_string(access.thread) + " " + block;
}

Access access_of(const Thread& thread) {
  return {static_cast<int16_t>(thread.block->number), static_cast<int16_t>(thread.thread), thread.interval};
}

void remember_read(Cell& cell, const Thread& thread) {
  const Access now = access_of(thread);
  Access* place = nullptr;
  for (Access& read : cell.reads) {
    if (read.block == now.block) {
      const bool ordered = before(read, thread);
      read = {now.block, ordered ? now.thread : kSeveral, now.interval};
      return;
    }
    if (place == nullptr && before(read, thread)) place = &read;
  }
  if (place != nullptr) *place = now;  // else it is not recorded: a race may be missed, but none is reported wrongly
}

class Look {
 public:
  Look(Launch& launch, Buffer& buffer, const char* at, bool write)
      : launch_(launch), thread_(launch.running()), buffer_(buffer), at_(at), write_(write) {}

  // Look at a write that its thread does not wait for.
  Look& as(const Access& access) {
    access_ = access;
    return *this;
  }

  void at_cell(Cell& cell) {
    if (cell.launch != launches) {  // everything in an earlier launch has ended
      const bool written = cell.written;
      cell = Cell();
      cell.launch = launches;
      cell.written = written;
    }
    if (!before(cell.write, thread_)) fail("what " + name_of(cell.write) + " wrote, with no barrier in between");
    if (!write_) {
      if (!cell.written && !buffer_.written) fail("what nothing has written");
      remember_read(cell, thread_);
      return;
    }
    for (Access& read : cell.reads) {
      if (!before(read, thread_)) fail("what " + name_of(read) + " read, with no barrier in between");
      read = Access();
    }
    cell.write = access_.block == kNobody ? access_of(thread_) : access_;
    cell.written = true;
  }
  [[noreturn]] void fail(const std::string& what) {
    launch_.fail((write_ ? "writes byte " : "reads byte ") + std::to_string(at_ - buffer_.begin) + " of " +
                 buffer_.name + ": " + what);
  }

 private:
  Launch& launch_;
  Thread& thread_;
  Buffer& buffer_;
  const char* at_;
  bool write_;
  Access access_;
};

void look(const void* p, int64_t bytes, bool write, int64_t alignment = 1, const Access& as = Access()) {
  Launch* launch = current();
  if (launch == nullptr || !memory().contains(p)) return;
  const auto at = static_cast<const char*>(p);
  Buffer* buffer = memory().find(p);
  if (buffer == nullptr || at + bytes > buffer->end()) {
    launch->fail(std::string(write ? "writes " : "reads ") + std::to_string(bytes) + " bytes outside of every buffer" +
                 (buffer != nullptr ? ", at the end of " + buffer->name : ""));
  }
  if (write && buffer->name == "exchange") counted().exchanged_bytes += bytes;
  Look here(*launch, *buffer, at, write);
  here.as(as);
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(alignment) != 0) {
    here.fail(std::to_string(alignment) + " bytes at once, at an address that is not a multiple of that");
  }
  if (buffer->gone) here.fail("its block has left");
  if (buffer->block >= 0) {
    const auto& blocks = launch->running().block->cluster->blocks;
    const auto owner = [&](const BlockState* block) { return block->number == buffer->block; };
    if (std::none_of(blocks.begin(), blocks.end(), owner)) here.fail("it belongs to a block of another cluster");
  }
  if (buffer->cells == nullptr) {
    buffer->cells = std::shared_ptr<Cell[]>(new Cell[static_cast<size_t>(buffer->bytes / kCellBytes + 1)]);
  }
  const int64_t first = (at - buffer->begin) / kCellBytes, last = (at - buffer->begin + bytes - 1) / kCellBytes;
  for (int64_t k = first; k <= last; ++k) here.at_cell(buffer->cells[static_cast<size_t>(k)]);
}

}  // namespace

void note_launch() {
  ++launches;
  announcements.clear();
  pushed.clear();
}

void note_sync(BlockState& block) {
  std::vector<uint32_t> together;
  for (const Thread& thread : block.threads) {
    join(together, thread.known);
    know(together, block.number, thread.interval + 1);
  }
  for (Thread& thread : block.threads) {
    thread.known = together;
    ++thread.interval;
  }
}

void note_arrival(Thread& thread) {
  Cluster& cluster = *thread.block->cluster;
  join(cluster.released, thread.known);
  know(cluster.released, thread.block->number, ++thread.interval);
}
void note_cluster_barrier(Cluster& cluster) { cluster.acquired = cluster.released; }
void note_wait(Thread& thread) { join(thread.known, thread.block->cluster->acquired); }

void note_announcement(Thread& thread, const uint32_t* counter) {
  auto& all = announcements[counter];
  std::vector<uint32_t> released = all.empty() ? std::vector<uint32_t>() : all.back();
  join(released, thread.known);
  all.push_back(std::move(released));
}
void note_count(Thread& thread, const uint32_t* counter) {
  const auto& all = announcements[counter];
  if (thread.target > 0 && thread.target <= all.size()) join(thread.known, all[thread.target - 1]);
}

void note_push(PushState& state, Thread& thread, const void* target) {
  const int64_t actor = current()->blocks() + thread.block->number;
  const uint32_t interval = pushed[actor]++;
  look(target, 16, true, 16, {static_cast<int16_t>(actor), static_cast<int16_t>(thread.thread), interval});
  join(state.released, thread.known);
  know(state.released, actor, interval + 1);
}
void note_pushes(const PushState& state, Thread& thread) { join(thread.known, state.released); }

// Every access to the block's shared memory must be ordered before the block's exit, not just happen before it this
// time.
std::string note_exit(BlockState& block) {
  if (block.shared->cells == nullptr) return {};
  std::vector<uint32_t> together;
  for (const Thread& thread : block.threads) join(together, thread.known);
  const auto loose = [&](const Access& access) {
    return access.block != kNobody && access.block != block.number && !knows(together, access);
  };
  for (int64_t k = 0; k <= block.shared->bytes / kCellBytes; ++k) {
    const Cell& cell = block.shared->cells[static_cast<size_t>(k)];
    for (const Access& read : cell.reads) {
      if (loose(read)) return "block " + std::to_string(block.number) + " leaves before " + name_of(read) + " has read";
    }
    if (loose(cell.write)) {
      return "block " + std::to_string(block.number) + " leaves before " + name_of(cell.write) + " has written";
    }
  }
  return {};
}

}  // namespace fastrnn::emulator

// Functions that the compiler's instrumentation calls.
#define FASTRNN_HOOK extern "C" __attribute__((visibility("hidden"))) void
#define FASTRNN_ACCESS(bytes)                                                                      \
  FASTRNN_HOOK __tsan_read##bytes(void* p) { fastrnn::emulator::look(p, bytes, false, bytes); }    \
  FASTRNN_HOOK __tsan_write##bytes(void* p) { fastrnn::emulator::look(p, bytes, true, bytes); }    \
  FASTRNN_HOOK __tsan_unaligned_read##bytes(void* p) { fastrnn::emulator::look(p, bytes, false); } \
  FASTRNN_HOOK __tsan_unaligned_write##bytes(void* p) { fastrnn::emulator::look(p, bytes, true); }
FASTRNN_ACCESS(1)
FASTRNN_ACCESS(2)
FASTRNN_ACCESS(4)
FASTRNN_ACCESS(8)
FASTRNN_ACCESS(16)
FASTRNN_HOOK __tsan_read_range(void* p, size_t n) { fastrnn::emulator::look(p, static_cast<int64_t>(n), false); }
FASTRNN_HOOK __tsan_write_range(void* p, size_t n) { fastrnn::emulator::look(p, static_cast<int64_t>(n), true); }
FASTRNN_HOOK __tsan_init() {}
FASTRNN_HOOK __tsan_func_entry(void*) {}
FASTRNN_HOOK __tsan_func_exit() {}
// Guards of static variables, on the host's side.
extern "C" __attribute__((visibility("hidden"))) unsigned char __tsan_atomic8_load(const volatile unsigned char* p,
                                                                                   int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

#else

namespace fastrnn::emulator {

struct Cell {};

void note_launch() {}
void note_sync(BlockState&) {}
void note_arrival(Thread&) {}
void note_cluster_barrier(Cluster&) {}
void note_wait(Thread&) {}
void note_announcement(Thread&, const uint32_t*) {}
void note_count(Thread&, const uint32_t*) {}
void note_push(PushState&, Thread&, const void*) {}
void note_pushes(const PushState&, Thread&) {}
std::string note_exit(BlockState&) { return {}; }

}  // namespace fastrnn::emulator

#endif
