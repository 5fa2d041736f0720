// How the blocks of a group tell each other their part of the next operand, once a step. Two buffers take turns: who
// writes the next operand has seen that everybody has read the one before it, by the barrier in between.
#pragma once

#include "cuda/args.h"
#include "cuda/device.h"

namespace fastrnn::cuda {

FASTRNN_FN int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Through global memory, with a counter for a barrier; every block of the grid must be on the machine at once.
struct ThroughGrid {
  static constexpr bool kCluster = false;
  char* memory;
  int64_t buffer_bytes;
  uint32_t* counter;
  uint32_t members, target;

  struct Load {
    static constexpr int kInFlight = 8;  // a thread's loads of 16 bytes before the first is used: 32 registers
    FASTRNN_DEVICE Bits128 operator()(const char* p) const { return load_fresh(p); }
  };

  FASTRNN_FN static int64_t shared_bytes(const Tiling&, int64_t) { return 0; }

  template <class Args>
  FASTRNN_DEVICE ThroughGrid(Block& block, const Args& a, char*, int64_t bytes)
      : memory(static_cast<char*>(a.exchange.buffers) + block.y() * 2 * bytes),
        buffer_bytes(bytes),
        counter(a.exchange.counters + block.y()),
        members(static_cast<uint32_t>(a.tiling.unit_slices)),
        target(0) {}

  FASTRNN_DEVICE const char* buffer(int64_t k) const { return memory + k % 2 * buffer_bytes; }
  template <class Format>
  FASTRNN_DEVICE void publish(Block&, int64_t k, int64_t at, float value) {
    Format::operand(value, reinterpret_cast<typename Format::Storage*>(memory + k % 2 * buffer_bytes) + at);
  }
  FASTRNN_DEVICE void arrive(Block& block) {
    block.sync();
    if (block.thread() == 0) announce(counter);
  }
  FASTRNN_DEVICE void wait(Block& block) {
    target += members;
    if (block.thread() == 0) await_count(counter, target);
    block.sync();
  }
};

// Through the shared memory of a cluster: every block has a copy of the operand, and writes its part into all.
struct ThroughCluster {
  static constexpr bool kCluster = true;
  char* memory;
  int64_t buffer_bytes;
  int members;

  struct Load {
    static constexpr int kInFlight = 4;  // shared memory is near
    FASTRNN_DEVICE Bits128 operator()(const char* p) const { return *reinterpret_cast<const Bits128*>(p); }
  };

  FASTRNN_FN static int64_t shared_bytes(const Tiling&, int64_t bytes) { return 2 * bytes; }

  template <class Args>
  FASTRNN_DEVICE ThroughCluster(Block& block, const Args& a, char* shared, int64_t bytes)
      : memory(shared), buffer_bytes(bytes), members(a.tiling.unit_slices) {
    // The padding of the depth and of the rows counts as zero.
    for (int64_t n = block.thread(); n < 2 * bytes / 16; n += block.threads()) {
      reinterpret_cast<Bits128*>(memory)[n] = {0, 0, 0, 0};
    }
    arrive(block);
    wait(block);
  }

  FASTRNN_DEVICE const char* buffer(int64_t k) const { return memory + k % 2 * buffer_bytes; }
  template <class Format>
  FASTRNN_DEVICE void publish(Block& block, int64_t k, int64_t at, float value) {
    using Storage = typename Format::Storage;
    Storage* mine = reinterpret_cast<Storage*>(memory + k % 2 * buffer_bytes) + at;
    Storage number;
    Format::operand(value, &number);
    for (int r = 0; r < members; ++r) *block.of_rank(mine, r) = number;
  }
  FASTRNN_DEVICE void arrive(Block& block) { block.cluster_arrive(); }
  FASTRNN_DEVICE void wait(Block& block) { block.cluster_wait(); }
};

}  // namespace fastrnn::cuda
