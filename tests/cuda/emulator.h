// Emulation of csrc/cuda/device.h on the CPU: the threads of blocks are fibers on one thread of the operating system,
// run in an order drawn from a seed. Included by csrc/cuda/device.h; launcher.h is the host's side.
//
// Errors that a GPU shows only sometimes, or silently, end the launch with a message: a barrier that some threads do
// not reach, or reach at another place in the source; a product in which not all lanes of a warp take part; threads
// that wait for each other; memory of a block that has exited; writes outside shared memory.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FASTRNN_DEVICE inline

namespace fastrnn::emulator {

// Source location of a call in a kernel: default argument of every primitive.
struct Place {
  const char* file;
  int line;
};

struct ThreadView {
  int thread, threads, rank;
  int64_t x, y, x_blocks;
  char* shared;
};

enum class Kind { kBFloat16, kFloat16, kTf32 };

// Operations of the running thread.
void sync(Place at);
void cluster_arrive(Place at);
void cluster_wait(Place at);
void* peer(void* mine, int64_t bytes, int rank, Place at);
void announce(uint32_t* counter);
void await_count(const uint32_t* counter, uint32_t target, Place at);
// A barrier that counts bytes pushed into a block's shared memory.
void start(void* barrier, Place at);
void expect(void* barrier, uint32_t bytes, Place at);
void await(const void* barrier, uint32_t parity, Place at);
void push(void* mine, const void* bits, void* barrier, int rank, Place at);
// sum (4) of this lane += its part of the warp's product; a: 4 registers, b: 2.
void multiply(Kind kind, float* sum, const uint32_t* a, const uint32_t* b, Place at);
// Called before 16 bytes are read at once; sometimes lets other threads run.
void before_load(const void* p);

}  // namespace fastrnn::emulator

namespace fastrnn::cuda {

struct Block {
  const emulator::ThreadView& view;

  int thread() const { return view.thread; }
  int threads() const { return view.threads; }
  int64_t x() const { return view.x; }
  int64_t y() const { return view.y; }
  int64_t x_blocks() const { return view.x_blocks; }
  char* shared() const { return view.shared; }
  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { emulator::sync({file, line}); }

  int rank() const { return view.rank; }
  template <class T>
  T* of_rank(T* mine, int rank, const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    return static_cast<T*>(emulator::peer(mine, sizeof(T), rank, {file, line}));
  }
  void cluster_arrive(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    emulator::cluster_arrive({file, line});
  }
  void cluster_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    emulator::cluster_wait({file, line});
  }
};

FASTRNN_DEVICE Bits128 load_fresh(const void* p) {
  emulator::before_load(p);
  return *static_cast<const Bits128*>(p);
}
FASTRNN_DEVICE void announce(uint32_t* counter) { emulator::announce(counter); }
FASTRNN_DEVICE void await_count(const uint32_t* counter, uint32_t target, const char* file = __builtin_FILE(),
                                int line = __builtin_LINE()) {
  emulator::await_count(counter, target, {file, line});
}

FASTRNN_DEVICE void start(PushBarrier* barrier, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::start(barrier, {file, line});
}
FASTRNN_DEVICE void expect(PushBarrier* barrier, uint32_t bytes, const char* file = __builtin_FILE(),
                           int line = __builtin_LINE()) {
  emulator::expect(barrier, bytes, {file, line});
}
FASTRNN_DEVICE void await(Block&, const PushBarrier* barrier, uint32_t parity, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  emulator::await(barrier, parity, {file, line});
}
struct Peer {
  int rank;
};
FASTRNN_DEVICE Peer peer(Block&, int rank) { return {rank}; }
FASTRNN_DEVICE void push(Block&, Bits128* mine, const Bits128& bits, PushBarrier* barrier, Peer to,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::push(mine, &bits, barrier, to.rank, {file, line});
}

FASTRNN_DEVICE void multiply_add_of(emulator::Kind kind, float (&sum)[4], const Bits128& a, uint32_t b0, uint32_t b1,
                                    emulator::Place at) {
  const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[2] = {b0, b1};
  emulator::multiply(kind, sum, left, right, at);
}
FASTRNN_DEVICE void multiply_add(Block&, MmaBFloat16, float (&sum)[4], const Bits128& a, uint32_t b0, uint32_t b1,
                                 const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  multiply_add_of(emulator::Kind::kBFloat16, sum, a, b0, b1, {file, line});
}
FASTRNN_DEVICE void multiply_add(Block&, MmaFloat16, float (&sum)[4], const Bits128& a, uint32_t b0, uint32_t b1,
                                 const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  multiply_add_of(emulator::Kind::kFloat16, sum, a, b0, b1, {file, line});
}
FASTRNN_DEVICE void multiply_add(Block&, MmaTf32, float (&sum)[4], const Bits128& a, uint32_t b0, uint32_t b1,
                                 const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  multiply_add_of(emulator::Kind::kTf32, sum, a, b0, b1, {file, line});
}

// Rounds to nearest, ties away from zero; NaN becomes the one that the GPU produces.
FASTRNN_DEVICE float round_tf32(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    bits = 0x7fffffffu;
  } else if (magnitude < 0x7f800000u) {
    bits = (bits + 0x1000u) & 0xffffe000u;
  }
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace fastrnn::cuda
