// Exchange of the parts of the next operand between the blocks of a group, once per step. There are two alternating
// buffers: before a block writes the next operand, all blocks have read the one before the last, by the barrier
// between.
//
// Operands are numbered from 0. A block publishes its numbers of an operand, sends them, and waits for those of the
// others.
#pragma once

#include "cuda/args.h"
#include "cuda/device.h"

namespace fastrnn::cuda {

FASTRNN_FN int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// An operand and a block's part of it. A row holds one number for every unit of each of `gates` gates; gates begin at
// multiples of 16 bytes.
struct OperandPart {
  int gates, gate_numbers;  // h: one gate; ∂L/∂rh: all
  int rows, units, first_unit;
  int stride;            // bytes between rows
  int64_t buffer_bytes;  // for all rows

  FASTRNN_FN static int64_t numbers_of_gate(int64_t hidden) { return round_up(hidden, kGranule); }
  // Index of a number in its row
  FASTRNN_FN int place(int gate, int unit) const { return gate * gate_numbers + first_unit + unit; }
};

// Exchange through global memory, with a counter as barrier; all blocks of the grid must be resident at once.
template <class Format>
struct ThroughGrid {
  using Storage = typename Format::Storage;
  const OperandPart& part;
  char* memory;
  uint32_t* counter;
  uint32_t members, target;

  struct Load {
    static constexpr int kInFlight = 8;  // loads of 16 bytes in flight per thread: 32 registers
    FASTRNN_DEVICE Bits128 operator()(const char* p) const { return load_fresh(p); }
  };

  FASTRNN_FN static int64_t stride(const Tiling& t) { return t.depth * static_cast<int64_t>(sizeof(Storage)); }
  FASTRNN_FN static int64_t shared_bytes(int64_t) { return 0; }

  template <class Args>
  FASTRNN_DEVICE ThroughGrid(Block& block, const Args& a, const OperandPart& part, char*)
      : part(part),
        memory(static_cast<char*>(a.exchange.buffers) + block.y() * 2 * part.buffer_bytes),
        counter(a.exchange.counters + block.y()),
        members(static_cast<uint32_t>(a.tiling.unit_slices)),
        target(0) {}

  FASTRNN_DEVICE char* buffer(int n) const { return memory + (n & 1) * part.buffer_bytes; }
  FASTRNN_DEVICE void publish(int n, int row, int gate, int unit, float value) const {
    Format::operand(value, reinterpret_cast<Storage*>(buffer(n) + row * part.stride) + part.place(gate, unit));
  }
  FASTRNN_DEVICE void send(Block& block, int) {
    block.sync();
    if (block.thread() == 0) announce(counter);
  }
  FASTRNN_DEVICE void wait(Block& block, int) {
    target += members;
    if (block.thread() == 0) await_count(counter, target);
    block.sync();
  }
};

// Exchange through the shared memory of a cluster: every block has a copy of the operand and pushes its part to the
// others, 16 bytes at a time, counted by a barrier of the receiver. No fence is needed.
template <class Format>
struct ThroughCluster {
  using Storage = typename Format::Storage;
  static constexpr int kMost = 16;  // blocks of a cluster
  const OperandPart& part;
  PushBarrier* arrived;  // one for each buffer
  char* memory;
  int members;
  uint32_t awaited;  // bytes of an operand expected from other blocks

  struct Load {
    static constexpr int kInFlight = 4;  // low latency of shared memory
    FASTRNN_DEVICE Bits128 operator()(const char* p) const { return *reinterpret_cast<const Bits128*>(p); }
  };

  // Rows a multiple of 128 bytes apart would use the same banks.
  FASTRNN_FN static int64_t stride(const Tiling& t) {
    const int64_t bytes = t.depth * static_cast<int64_t>(sizeof(Storage));
    return round_up(bytes - Format::kRowOffset, 128) + Format::kRowOffset;
  }
  FASTRNN_FN static int64_t shared_bytes(int64_t buffer_bytes) { return 16 + 2 * buffer_bytes; }
  // Number of 16-byte pieces of the units of one gate and row
  FASTRNN_FN static int chunks(int units) { return (units * static_cast<int>(sizeof(Storage)) + 15) / 16; }

  template <class Args>
  FASTRNN_DEVICE ThroughCluster(Block& block, const Args& a, const OperandPart& part, char* shared)
      : part(part),
        arrived(reinterpret_cast<PushBarrier*>(shared)),
        memory(shared + 16),
        members(a.tiling.unit_slices) {
    const int last = static_cast<int>(a.hidden) - (members - 1) * a.tiling.units;
    const int others = chunks(a.tiling.units) * (members - 1) + chunks(last) - chunks(part.units);
    awaited = static_cast<uint32_t>(16 * part.gates * part.rows * others);
    // The padding of the depth and of the rows is zero.
    for (int n = block.thread(); n < static_cast<int>(2 * part.buffer_bytes / 16); n += block.threads()) {
      reinterpret_cast<Bits128*>(memory)[n] = {0, 0, 0, 0};
    }
    if (block.thread() == 0) {
      for (int n = 0; n < 2; ++n) start(arrived + n);
      for (int n = 0; n < 2; ++n) expect(arrived + n, awaited);
    }
    block.cluster_arrive();
    block.cluster_wait();
  }

  FASTRNN_DEVICE char* buffer(int n) const { return memory + (n & 1) * part.buffer_bytes; }
  FASTRNN_DEVICE void publish(int n, int row, int gate, int unit, float value) const {
    Format::operand(value, reinterpret_cast<Storage*>(buffer(n) + row * part.stride) + part.place(gate, unit));
  }
  // Each warp sends a row; its lanes cover the other blocks and the pieces of 16 bytes.
  FASTRNN_DEVICE void send(Block& block, int n) {
    block.sync();
    const int rank = block.thread() % kMost, pieces = chunks(part.units);
    if (rank >= members || rank == block.rank()) return;
    for (int row = block.thread() / 32; row < part.rows; row += block.threads() / 32) {
      for (int gate = 0; gate < part.gates; ++gate) {
        char* from = buffer(n) + row * part.stride + part.place(gate, 0) * static_cast<int>(sizeof(Storage));
        for (int piece = block.thread() % 32 / kMost; piece < pieces; piece += 32 / kMost) {
          Bits128* mine = reinterpret_cast<Bits128*>(from) + piece;
          push(block, mine, *mine, arrived + (n & 1), rank);
        }
      }
    }
  }
  // The barrier's n/2-th phase ends when operand n is complete; the next one counts operand n + 2, of which no block
  // sends its part before this block has sent its part of n + 1.
  FASTRNN_DEVICE void wait(Block& block, int n) {
    if (members == 1) return;  // phases without pushes would end before all threads have seen them
    await(block, arrived + (n & 1), static_cast<uint32_t>(n >> 1 & 1));
    if (block.thread() == 0) expect(arrived + (n & 1), awaited);
  }
};

}  // namespace fastrnn::cuda
