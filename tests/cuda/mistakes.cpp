// Small kernels, each with one mistake that the emulator must find, and a few correct ones.
#include <string.h>

#include <string>
#include <vector>

#include "cuda/args.h"
#include "cuda/device.h"
#include "launcher.h"
#include "memory.h"
#include "simd/compute.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

constexpr int kBlocks = 4, kThreadsEach = 64, kNumbers = 256, kSharedBytes = kNumbers * 4;

struct Args {
  float* out;  // [kNumbers]
  uint32_t* counter;
};

float* numbers(Block& block) { return reinterpret_cast<float*>(block.shared()); }

// Every thread writes its number to shared memory and returns its neighbour's.
void neighbours(Block& block, const Args& a, bool barrier) {
  const int me = block.thread(), next = (me + 1) % block.threads();
  numbers(block)[me] = static_cast<float>(me);
  if (barrier) block.sync();
  if (block.x() == 0) a.out[me] = numbers(block)[next];
}
// The same twice: a barrier is also needed between reading and the next writing.
void again(Block& block, const Args& a, bool barrier) {
  neighbours(block, a, true);
  if (barrier) block.sync();
  neighbours(block, a, true);
}

void divergent(Block& block, const Args&) {
  if (block.thread() < 48) block.sync();
}
void two_barriers(Block& block, const Args&) {
  if (block.thread() % 2 == 0) {
    block.sync();
  } else {
    block.sync();
  }
}

// The cluster's last block writes into the first one's memory.
void to_peer(Block& block, const Args& a, bool stay) {
  if (block.thread() == 0) numbers(block)[0] = 0;
  block.cluster_arrive();
  block.cluster_wait();
  if (block.rank() == kBlocks - 1) {
    block.sync();
    if (block.thread() == 0) *block.of_rank(numbers(block), 0) = 7;
  }
  if (!stay) return;
  block.cluster_arrive();
  block.cluster_wait();
  if (block.rank() == 0 && block.thread() == 0) a.out[0] = numbers(block)[0];
}
void cluster_divergent(Block& block, const Args&) {
  if (block.rank() == 1) return;
  block.cluster_arrive();
  block.cluster_wait();
}
void arrive_twice(Block& block, const Args&) {
  block.cluster_arrive();
  block.cluster_arrive();
}
void wait_alone(Block& block, const Args&) { block.cluster_wait(); }
void no_wait(Block& block, const Args&) { block.cluster_arrive(); }
void no_such_rank(Block& block, const Args&) { *block.of_rank(numbers(block), kBlocks) = 1; }

// The cluster's last block pushes into the first one's memory twice: the second time as soon as it has been notified
// that the first push has been read.
void pushes(Block& block, const Args& a, uint32_t expected, bool awaited, bool told) {
  auto* barriers = reinterpret_cast<PushBarrier*>(block.shared());
  auto* to = reinterpret_cast<Bits128*>(block.shared() + 64);
  if (block.thread() == 0) {
    to[0] = {0, 0, 0, 0};
    to[1] = {0, 0, 0, 0};
    for (int n = 0; n < 2; ++n) start(barriers + n);
    for (int n = 0; n < 2; ++n) expect(barriers + n, block.rank() == 0 && n == 0 ? expected : 16);
  }
  block.cluster_arrive();
  block.cluster_wait();
  if (block.rank() == kBlocks - 1 && block.thread() == 0) {
    push(block, to, {7, 0, 0, 0}, barriers, peer(block, 0));
    if (told) await(block, barriers + 1, 0);
    push(block, to, {8, 0, 0, 0}, barriers, peer(block, 0));
  }
  if (block.rank() == 0) {
    if (awaited) await(block, barriers, 0);
    if (block.thread() < 32) a.out[block.thread()] = static_cast<float>(to[0].x);
    block.sync();
    if (block.thread() == 0) {
      expect(barriers, 16);
      push(block, to + 1, {1, 0, 0, 0}, barriers + 1, peer(block, kBlocks - 1));
      await(block, barriers, 1);
      a.out[100] = static_cast<float>(to[0].x);
    }
  }
  block.cluster_arrive();
  block.cluster_wait();
}

void beside_shared(Block& block, const Args&) {
  if (block.thread() == 0) numbers(block)[kNumbers] = 1;
}
void beside_out(Block& block, const Args& a) {
  if (block.x() == 0 && block.thread() == 0) a.out[kNumbers] = 1;
}
void read_beside_out(Block& block, const Args& a) {
  if (block.x() == 0 && block.thread() == 0) numbers(block)[0] = a.out[-1];
}
void unwritten(Block& block, const Args& a) {
  if (block.x() == 0 && block.thread() == 0) a.out[0] = numbers(block)[5];
}

void misaligned(Block& block, const Args& a) {
  numbers(block)[block.thread()] = 1;
  block.sync();
  const Bits128 bits = load_fresh(numbers(block) + 2);
  if (block.x() == 0) a.out[block.thread()] = bit_cast<float>(bits.x);
}

// Every block writes a number; the first one reads that of the last.
void through_counter(Block& block, const Args& a, bool synced, bool awaited, uint32_t target) {
  if (block.thread() == 1) a.out[block.x()] = static_cast<float>(block.x());
  if (synced) block.sync();
  if (block.thread() == 0) announce(a.counter);
  if (block.x() != 0) return;
  if (awaited && block.thread() == 0) await_count(a.counter, target);
  block.sync();
  if (block.thread() == 5) a.out[100] = a.out[kBlocks - 1];
}

// out (16, 8) = a · b, a[r][k] = r + k % 3, b[k][c] = c - k % 2, on the lanes of the first warp, of 16 bits each.
float left(uint32_t r, uint32_t k) { return static_cast<float>(r + k % 3); }
float right(uint32_t k, uint32_t c) { return static_cast<float>(c) - static_cast<float>(k % 2); }
template <class T>
uint32_t pair(float low, float high) {
  T both[2];
  narrow(low, both);
  narrow(high, both + 1);
  uint32_t bits;
  memcpy(&bits, both, 4);
  return bits;
}
void store(const Args& a, uint32_t lane, const float (&sum)[4]) {
  for (uint32_t i = 0; i < 4; ++i) a.out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
template <class T, class Kind>
void product16(Block& block, const Args& a, bool exchanged) {
  if (block.thread() >= 32 || block.x() > 0) return;
  const auto lane = static_cast<uint32_t>(block.thread()), g = lane / 4, k = lane % 4 * 2;
  const auto of = [&](uint32_t row, uint32_t from) { return pair<T>(left(row, from), left(row, from + 1)); };
  Bits128 x{of(g, k), of(g + 8, k), of(g, k + 8), of(g + 8, k + 8)};
  if (exchanged) std::swap(x.y, x.z);
  float sum[4] = {};
  multiply_add(block, Kind(), sum, x, pair<T>(right(k, g), right(k + 1, g)), pair<T>(right(k + 8, g), right(k + 9, g)));
  store(a, lane, sum);
}
void product_tf32(Block& block, const Args& a) {
  if (block.thread() >= 32 || block.x() > 0) return;
  const auto lane = static_cast<uint32_t>(block.thread()), g = lane / 4, q = lane % 4;
  const auto of = [](float x) { return bit_cast<uint32_t>(round_tf32(x)); };
  float sum[4] = {};
  for (uint32_t k = q; k < 16; k += 8) {
    multiply_add(block, MmaTf32(), sum,
                 {of(left(g, k)), of(left(g + 8, k)), of(left(g, k + 4)), of(left(g + 8, k + 4))}, of(right(k, g)),
                 of(right(k + 4, g)));
  }
  store(a, lane, sum);
}
void half_a_warp(Block& block, const Args&) {
  float sum[4] = {};
  if (block.thread() < 16) multiply_add(block, MmaBFloat16(), sum, {0, 0, 0, 0}, 0, 0);
  block.sync();
}

struct Kernel {
  const char* name;
  void (*run)(Block&, const Args&);
  int cluster = 0;
  bool cooperative = false;
};

const Kernel kKernels[] = {
    {"right: barrier", [](Block& b, const Args& a) { neighbours(b, a, true); }},
    {"no barrier before reading", [](Block& b, const Args& a) { neighbours(b, a, false); }},
    {"right: two barriers", [](Block& b, const Args& a) { again(b, a, true); }},
    {"no barrier before writing", [](Block& b, const Args& a) { again(b, a, false); }},
    {"barrier in a branch", divergent},
    {"two barriers at once", two_barriers},
    {"right: peer", [](Block& b, const Args& a) { to_peer(b, a, true); }, kBlocks},
    {"peer has left", [](Block& b, const Args& a) { to_peer(b, a, false); }, kBlocks},
    {"cluster barrier in a branch", cluster_divergent, kBlocks},
    {"arrives twice", arrive_twice, kBlocks},
    {"waits without arriving", wait_alone, kBlocks},
    {"leaves without waiting", no_wait, kBlocks},
    {"no such rank", no_such_rank, kBlocks},
    {"writes beside shared memory", beside_shared},
    {"writes beside a buffer", beside_out},
    {"reads beside a buffer", read_beside_out},
    {"reads what nothing wrote", unwritten},
    {"reads 16 bytes askew", misaligned},
    {"right: pushes", [](Block& b, const Args& a) { pushes(b, a, 16, true, true); }, kBlocks},
    {"does not await pushes", [](Block& b, const Args& a) { pushes(b, a, 16, false, true); }, kBlocks},
    {"pushes before the reading", [](Block& b, const Args& a) { pushes(b, a, 16, true, false); }, kBlocks},
    {"expects too many pushes", [](Block& b, const Args& a) { pushes(b, a, 48, true, true); }, kBlocks},
    {"right: counter", [](Block& b, const Args& a) { through_counter(b, a, true, true, kBlocks); }, 0, true},
    {"announces too early", [](Block& b, const Args& a) { through_counter(b, a, false, true, kBlocks); }, 0, true},
    {"does not wait for the counter", [](Block& b, const Args& a) { through_counter(b, a, true, false, 0); }, 0, true},
    {"waits for too few", [](Block& b, const Args& a) { through_counter(b, a, true, true, kBlocks - 1); }, 0, true},
    {"waits for too many", [](Block& b, const Args& a) { through_counter(b, a, true, true, kBlocks + 1); }, 0, true},
    {"right: bfloat16 product", [](Block& b, const Args& a) { product16<BFloat16, MmaBFloat16>(b, a, false); }},
    {"right: float16 product", [](Block& b, const Args& a) { product16<Float16, MmaFloat16>(b, a, false); }},
    {"right: tf32 product", product_tf32},
    {"registers exchanged", [](Block& b, const Args& a) { product16<Float16, MmaFloat16>(b, a, true); }},
    {"product of half a warp", half_a_warp},
};

}  // namespace

#define FASTRNN_EXPORT extern "C" __attribute__((visibility("default")))

// Returns the k-th kernel's name, or null.
FASTRNN_EXPORT const char* emulated_kernel(int64_t k) {
  return k >= 0 && k < static_cast<int64_t>(std::size(kKernels)) ? kKernels[k].name : nullptr;
}
// Runs a kernel on the emulated machine: its error, the message, and the 256 numbers in `out`.
FASTRNN_EXPORT int64_t emulated_run_kernel(int64_t k, float* out, char* text, int64_t room) {
  const Kernel& kernel = kKernels[k];
  emulator::Memory& memory = emulator::memory();
  Args args{};
  args.out = reinterpret_cast<float*>(memory.allocate("out", kNumbers * 4, 4).begin);
  emulator::Buffer& counter = memory.allocate("counter", 4, 4);
  memset(counter.begin, 0, 4);
  counter.written = true;
  args.counter = reinterpret_cast<uint32_t*>(counter.begin);
  struct Both {
    const Kernel* kernel;
    Args args;
  } both{&kernel, args};
  emulator::forget_failure();
  const auto entry = [](Block& block, const void* p) {
    const Both& both = *static_cast<const Both*>(p);
    both.kernel->run(block, both.args);
  };
  const int error =
      emulator::launch({kBlocks, 1, kThreadsEach, kSharedBytes, kernel.cluster, kernel.cooperative}, entry, &both);
  memcpy(out, args.out, kNumbers * 4);
  strncpy(text, emulator::failure().c_str(), static_cast<size_t>(room - 1));
  memory.shrink(0);
  return error;
}
