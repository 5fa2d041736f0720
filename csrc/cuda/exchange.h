// Exchange of the parts of the next operand between the blocks of a group, once per step. There are two alternating
// buffers: before a block writes the next operand, all blocks have read the one before the last, by the barrier
// between.
//
// For every operand a block publishes its numbers, sends them, and waits for those of the others; then it reads it.
#pragma once

#include "cuda/args.h"
#include "cuda/device.h"
#include "cuda/sizes.h"

namespace fastrnn::cuda {

// An operand and a block's part of it. A row holds one number for every unit of each of `gates` gates; gates begin at
// multiples of 16 bytes.
struct OperandPart {
  int gates, gate_numbers;      // h: one gate; ∂L/∂rh: all
  int rows, units, last_units;  // that a block sends, and that the last block of the group does
  int first_unit;
  int stride;        // bytes between rows
  int buffer_bytes;  // for all rows
  bool whole;        // rows and units are those of whole tiles

  // Index of a number in its row
  FASTRNN_FN int place(int gate, int unit) const { return gate * gate_numbers + first_unit + unit; }
};

// Exchange through global memory, with a counter as barrier; all blocks of the grid must be resident at once.
template <class Format>
struct ThroughGrid {
  using Storage = typename Format::Storage;
  static constexpr bool kCluster = false;
  const OperandPart& part;
  char* memory;
  uint32_t* counter;
  uint32_t members, target;
  int written;  // offset of the buffer that is written next

  struct Load {
    static constexpr int kInFlight = 8;  // loads of 16 bytes in flight per thread: 32 registers
    FASTRNN_DEVICE Bits128 operator()(const char* p) const { return load_fresh(p); }
  };

  FASTRNN_FN static int64_t stride(const Tiling& t) { return t.depth * static_cast<int64_t>(sizeof(Storage)); }
  FASTRNN_FN static int64_t shared_bytes(int64_t) { return 0; }

  template <class Args>
  FASTRNN_DEVICE ThroughGrid(Block& block, const Args& a, const OperandPart& part, char*)
      : part(part),
        memory(static_cast<char*>(a.exchange.buffers) + block.y() * 2 * static_cast<int64_t>(part.buffer_bytes)),
        counter(a.exchange.counters + block.y()),
        members(static_cast<uint32_t>(a.tiling.unit_slices)),
        target(0),
        written(0) {}

  FASTRNN_DEVICE const char* operand() const { return memory + (part.buffer_bytes - written); }
  FASTRNN_DEVICE void publish(int row, int gate, int unit, float value) const {
    char* to = memory + (row * part.stride + part.place(gate, unit) * static_cast<int>(sizeof(Storage)));
    Format::operand(value, reinterpret_cast<Storage*>(to + written));
  }
  FASTRNN_DEVICE void send(Block& block) {
    block.sync();
    if (block.thread() == 0) announce(counter);
    written = part.buffer_bytes - written;
  }
  FASTRNN_DEVICE void wait(Block& block) {
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
  static constexpr bool kCluster = true;
  static constexpr int kMost = 16, kPieces = 32 / kMost;  // blocks of a cluster; pieces that a warp sends to each
  static constexpr int kBarrier = 16;                     // bytes before a buffer
  const OperandPart& part;
  char* memory;  // twice a barrier and a buffer
  int members;
  uint32_t awaited;  // bytes of an operand expected from other blocks
  int written;       // offset of the barrier and buffer that are written next
  uint32_t waits;
  Peer receiver;  // of what this thread sends, if it does
  bool sends;

  struct Load {
    static constexpr int kInFlight = 4;  // low latency of shared memory
    FASTRNN_DEVICE Bits128 operator()(const char* p) const { return *reinterpret_cast<const Bits128*>(p); }
  };

  // Rows a multiple of 128 bytes apart would use the same banks.
  FASTRNN_FN static int64_t stride(const Tiling& t) {
    const int64_t bytes = t.depth * static_cast<int64_t>(sizeof(Storage));
    return round_up(bytes - Format::kRowOffset, 128) + Format::kRowOffset;
  }
  FASTRNN_FN static int64_t shared_bytes(int64_t buffer_bytes) { return 2 * (kBarrier + buffer_bytes); }
  // Number of 16-byte pieces of the units of one gate and row
  FASTRNN_FN static int chunks(int units) { return (units * static_cast<int>(sizeof(Storage)) + 15) / 16; }

  template <class Args>
  FASTRNN_DEVICE ThroughCluster(Block& block, const Args& a, const OperandPart& part, char* shared)
      : part(part),
        memory(shared),
        members(a.tiling.unit_slices),
        written(0),
        waits(0),
        receiver(peer(block, block.thread() % kMost < members ? block.thread() % kMost : 0)),
        sends(block.thread() % kMost < members && block.thread() % kMost != block.rank()) {
    const int others = chunks(a.tiling.units) * (members - 1) + chunks(part.last_units) - chunks(part.units);
    awaited = static_cast<uint32_t>(16 * part.gates * part.rows * others);
    // The padding of the depth and of the rows is zero.
    for (int n = block.thread(); n < side() / 8; n += kThreads) reinterpret_cast<Bits128*>(memory)[n] = {0, 0, 0, 0};
    block.sync();
    if (block.thread() == 0) {
      for (int n = 0; n < 2; ++n) start(barrier(n * side()));
      for (int n = 0; n < 2; ++n) expect(barrier(n * side()), awaited);
    }
    block.cluster_arrive();
    block.cluster_wait();
  }

  FASTRNN_DEVICE int side() const { return kBarrier + part.buffer_bytes; }
  FASTRNN_DEVICE PushBarrier* barrier(int at) const { return reinterpret_cast<PushBarrier*>(memory + at); }
  FASTRNN_DEVICE const char* operand() const { return memory + kBarrier + (side() - written); }
  FASTRNN_DEVICE char* place(int row, int gate, int unit) const {
    return memory + kBarrier + (row * part.stride + part.place(gate, unit) * static_cast<int>(sizeof(Storage)));
  }
  FASTRNN_DEVICE void publish(int row, int gate, int unit, float value) const {
    Format::operand(value, reinterpret_cast<Storage*>(place(row, gate, unit) + written));
  }
  // Each warp sends a row; its lanes cover the other blocks and the pieces of 16 bytes.
  FASTRNN_DEVICE void send(Block& block) {
    block.sync();
    if (sends) push_all(block);
    written = side() - written;
  }
  FASTRNN_DEVICE void push_all(Block& block) const {
    const int pieces = chunks(part.units);
    for (int first_row = 0; first_row < part.rows; first_row += kWarps) {
      const int row = first_row + block.thread() / 32;
      if (!part.whole && row >= part.rows) continue;
      char* own = place(row, 0, 0) + block.thread() % 32 / kMost * 16 + written;
      for (int gate = 0; gate < part.gates; ++gate) {
        for (int first = 0; first < pieces; first += kPieces) {
          const int piece = first + block.thread() % 32 / kMost;
          if (!(part.whole && pieces % kPieces == 0) && piece >= pieces) continue;
          const int offset = gate * part.gate_numbers * static_cast<int>(sizeof(Storage)) + first * 16;
          Bits128* mine = reinterpret_cast<Bits128*>(own + offset);
          push(block, mine, *mine, barrier(written), receiver);
        }
      }
    }
  }
  // Every other operand has the same barrier. Of the one after the next, no block sends its part before this block has
  // sent its part of the next one.
  FASTRNN_DEVICE void wait(Block& block) {
    if (members == 1) return;  // phases without pushes would end before all threads have seen them
    PushBarrier* arrived = barrier(side() - written);
    await(block, arrived, waits++ >> 1 & 1);
    if (block.thread() == 0) expect(arrived, awaited);
  }
};

}  // namespace fastrnn::cuda
