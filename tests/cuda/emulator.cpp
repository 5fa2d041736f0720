// The primitives that emulator.h declares.
#include <string.h>

#include <algorithm>

#include "simd/compute.h"
#include "threads.h"

namespace fastrnn::emulator {

namespace {

bool same(const Place& a, const Place& b) { return a.line == b.line && std::string(a.file) == b.file; }

float lowest_bits_dropped(uint32_t bits) { return cuda::bit_cast<float>(bits & 0xffffe000u); }

float half_of(Kind kind, uint32_t bits, uint32_t which) {
  const auto low = static_cast<uint16_t>(bits >> (16 * which));
  return kind == Kind::kBFloat16 ? cuda::widen(BFloat16{low}) : cuda::widen(Float16{low});
}

// The operands in the layout of the PTX manual for the lanes (mma.m16n8k16 for 16 bits, mma.m16n8k8 for tf32).
void gather(Kind kind, const Thread* lanes, float (&a)[16][16], float (&b)[16][8]) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, q = lane % 4;
    const uint32_t* r = lanes[lane].factors;
    for (uint32_t reg = 0; reg < 4; ++reg) {
      const uint32_t row = g + 8 * (reg % 2), half = reg / 2;
      if (kind == Kind::kTf32) {
        a[row][q + 4 * half] = lowest_bits_dropped(r[reg]);
      } else {
        for (uint32_t i = 0; i < 2; ++i) a[row][2 * q + i + 8 * half] = half_of(kind, r[reg], i);
      }
    }
    for (uint32_t reg = 0; reg < 2; ++reg) {
      if (kind == Kind::kTf32) {
        b[q + 4 * reg][g] = lowest_bits_dropped(r[4 + reg]);
      } else {
        for (uint32_t i = 0; i < 2; ++i) b[2 * q + i + 8 * reg][g] = half_of(kind, r[4 + reg], i);
      }
    }
  }
}

void multiply_warp(Kind kind, Thread* lanes) {
  float a[16][16], b[16][8], product[16][8];
  gather(kind, lanes, a, b);
  const uint32_t depth = kind == Kind::kTf32 ? 8 : 16;
  for (uint32_t row = 0; row < 16; ++row) {
    for (uint32_t column = 0; column < 8; ++column) {
      float sum = 0;
      for (uint32_t k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      product[row][column] = sum;
    }
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, q = lane % 4;
    for (uint32_t i = 0; i < 4; ++i) lanes[lane].sum[i] += product[g + 8 * (i / 2)][2 * q + i % 2];
  }
}

// Sometimes lets other threads run.
void pause() {
  Launch& launch = *current();
  if (launch.chance(16)) launch.wait(State::kReady, launch.running().at);
}

}  // namespace

void before_load(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) current()->fail("reads 16 bytes at once from no multiple of 16");
  counted().fresh_bytes += 16;
  pause();
}

void sync(Place at) {
  Launch& launch = *current();
  Thread& thread = launch.running();
  BlockState& block = *thread.block;
  thread.at = at;
  if (block.warps[static_cast<size_t>(thread.thread / 32)].lanes > 0) {
    launch.fail("comes to the block's barrier while lanes of its warp wait for a product");
  }
  if (block.gone > 0) launch.fail("comes to the block's barrier after a thread of the block has left");
  for (const Thread& other : block.threads) {
    if (block.syncing == 0) break;
    if (other.state == State::kSync) {
      if (!same(other.at, at)) {
        launch.fail("comes to a barrier of the block while others wait at that of line " +
                    std::to_string(other.at.line));
      }
      break;
    }
  }
  if (++block.syncing < thread.threads) {
    launch.wait(State::kSync, at);
    return;
  }
  block.syncing = 0;
  ++counted().block_barriers;
  note_sync(block);
  for (Thread& other : block.threads) {
    if (&other != &thread) launch.wake(other);
  }
  launch.wait(State::kReady, at);
}

void cluster_arrive(Place at) {
  Launch& launch = *current();
  Thread& thread = launch.running();
  Cluster& cluster = *thread.block->cluster;
  thread.at = at;
  if (thread.arrived) launch.fail("arrives at the cluster's barrier twice");
  if (cluster.gone > 0) launch.fail("comes to the cluster's barrier after a thread of the cluster has left");
  if (cluster.arrived == 0) cluster.at = at;
  if (!same(cluster.at, at)) {
    launch.fail("arrives at the cluster's barrier while others arrived at that of line " +
                std::to_string(cluster.at.line));
  }
  thread.arrived = true;
  thread.barrier = cluster.barrier;
  note_arrival(thread);
  if (++cluster.arrived == cluster.threads) {
    cluster.arrived = 0;
    ++cluster.barrier;
    ++counted().cluster_barriers;
    note_cluster_barrier(cluster);
    for (BlockState* block : cluster.blocks) {
      for (Thread& other : block->threads) {
        if (other.state == State::kClusterWait) launch.wake(other);
      }
    }
  }
  pause();
}

void cluster_wait(Place at) {
  Launch& launch = *current();
  Thread& thread = launch.running();
  thread.at = at;
  if (!thread.arrived) launch.fail("waits at the cluster's barrier without having arrived");
  if (thread.barrier == thread.block->cluster->barrier) launch.wait(State::kClusterWait, at);
  thread.arrived = false;
  note_wait(thread);
}

namespace {

// Maps `mine`, in the shared memory of the running thread's block, to the same place in the block of that rank.
char* of_rank(void* mine, int rank) {
  Launch& launch = *current();
  const Thread& thread = launch.running();
  const Buffer& own = *thread.block->shared;
  const auto& blocks = thread.block->cluster->blocks;
  if (rank < 0 || rank >= static_cast<int>(blocks.size())) {
    launch.fail("asks for the memory of rank " + std::to_string(rank) + " in a cluster of " +
                std::to_string(blocks.size()));
  }
  if (mine < own.begin || mine >= own.end()) launch.fail("asks for an address that is not in its shared memory");
  const BlockState& other = *blocks[static_cast<size_t>(rank)];
  if (other.gone == thread.threads) {
    launch.fail("asks for the shared memory of rank " + std::to_string(rank) + ", whose block has left");
  }
  return other.shared->begin + (static_cast<char*>(mine) - own.begin);
}

PushState& pushes_of(const void* barrier) {
  const auto found = current()->pushes.find(barrier);
  if (found == current()->pushes.end()) current()->fail("uses a barrier of pushes that nobody has started");
  return found->second;
}

void end_phase(PushState& state) {
  if (!state.arrived || state.bytes != 0) return;
  state.arrived = false;
  ++state.phase;
  ++counted().push_phases;
  for (Thread* thread : state.waiting) current()->wake(*thread);
  state.waiting.clear();
}

}  // namespace

void* peer(void* mine, int64_t bytes, int rank, Place at) {
  counted().pushed_bytes += bytes;
  pause();
  current()->running().at = at;
  return of_rank(mine, rank);
}

void start(void* barrier, Place at) {
  current()->running().at = at;
  current()->pushes[barrier] = PushState();
}

void expect(void* barrier, uint32_t bytes, Place at) {
  Launch& launch = *current();
  launch.running().at = at;
  PushState& state = pushes_of(barrier);
  if (state.arrived) launch.fail("expects pushes twice in one phase");
  state.arrived = true;
  state.bytes += bytes;
  end_phase(state);
}

void await(const void* barrier, uint32_t parity, Place at) {
  Launch& launch = *current();
  Thread& thread = launch.running();
  thread.at = at;
  PushState& state = pushes_of(barrier);
  if ((state.phase & 1) == parity) {
    state.waiting.push_back(&thread);
    launch.wait(State::kPushes, at);
  }
  note_pushes(state, thread);
  pause();
}

void push(void* mine, const void* bits, void* barrier, int rank, Place at) {
  Launch& launch = *current();
  counted().pushed_bytes += 16;
  pause();
  launch.running().at = at;
  char* target = of_rank(mine, rank);
  if (reinterpret_cast<uintptr_t>(target) % 16 != 0) launch.fail("pushes 16 bytes to no multiple of 16");
  PushState& state = pushes_of(of_rank(barrier, rank));
  note_push(state, launch.running(), target);
  memcpy(target, bits, 16);
  state.bytes -= 16;
  end_phase(state);
}

void announce(uint32_t* counter) {
  Launch& launch = *current();
  pause();
  note_announcement(launch.running(), counter);
  ++counted().announcements;
  ++*counter;
  std::erase_if(launch.counting, [&](Thread* thread) {
    const bool reached = thread->counter == counter && static_cast<int32_t>(*counter - thread->target) >= 0;
    if (reached) launch.wake(*thread);
    return reached;
  });
}

void await_count(const uint32_t* counter, uint32_t target, Place at) {
  Launch& launch = *current();
  Thread& thread = launch.running();
  thread.at = at;
  thread.counter = counter;
  thread.target = target;
  if (static_cast<int32_t>(*counter - target) < 0) {
    launch.counting.push_back(&thread);
    launch.wait(State::kCounter, at);
  }
  note_count(thread, counter);
}

void multiply(Kind kind, float* sum, const uint32_t* a, const uint32_t* b, Place at) {
  Launch& launch = *current();
  Thread& thread = launch.running();
  thread.at = at;
  const auto number = static_cast<size_t>(thread.thread / 32);
  Warp& warp = thread.block->warps[number];
  Thread* lanes = &thread.block->threads[number * 32];
  if (thread.threads < static_cast<int>(number + 1) * 32)
    launch.fail("takes part in the product of an incomplete warp");
  if (warp.lanes == 0) {
    for (const Thread* lane = lanes; lane != lanes + 32; ++lane) {
      if (lane->state == State::kSync || lane->state == State::kGone) {
        launch.fail("begins a product that a lane of its warp cannot come to");
      }
    }
    warp.kind = kind;
    warp.at = at;
  }
  if (warp.kind != kind || !same(warp.at, at)) launch.fail("takes part in another product than lanes of its warp");
  thread.sum = sum;
  std::copy(a, a + 4, thread.factors);
  std::copy(b, b + 2, thread.factors + 4);
  if (++warp.lanes < 32) {
    launch.wait(State::kProduct, at);
    return;
  }
  warp.lanes = 0;
  ++counted().products;
  multiply_warp(kind, lanes);
  for (Thread* lane = lanes; lane != lanes + 32; ++lane) {
    if (lane != &thread) launch.wake(*lane);
  }
}

}  // namespace fastrnn::emulator
