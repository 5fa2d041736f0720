// The GPU primitives that the kernels use. On the GPU each is an instruction or two; with FASTRNN_CUDA_EMULATED the
// same names come from tests/cuda/emulator.h, which runs thread blocks as fibers on the CPU and checks for errors that
// a GPU would not report.
#pragma once

#include <stdint.h>

#include "simd/half.h"

namespace fastrnn::cuda {

struct alignas(16) Bits128 {
  uint32_t x, y, z, w;
};
struct alignas(8) Bits64 {
  uint32_t x, y;
};

// Barrier in a block's shared memory whose phase ends when the expected number of bytes has been pushed to that memory
struct alignas(8) PushBarrier {
  uint64_t state;
};

// Element types of the tensor cores
struct MmaBFloat16 {};
struct MmaFloat16 {};
struct MmaTf32 {};

}  // namespace fastrnn::cuda

#if defined(FASTRNN_CUDA_EMULATED)
#include "emulator.h"
#elif defined(__CUDACC__)

#define FASTRNN_DEVICE __device__ __forceinline__

namespace fastrnn::cuda {

// A thread's view of its block, and of the block's cluster
struct Block {
  FASTRNN_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  FASTRNN_DEVICE int threads() const { return static_cast<int>(blockDim.x); }
  FASTRNN_DEVICE int64_t x() const { return blockIdx.x; }
  FASTRNN_DEVICE int64_t y() const { return blockIdx.y; }
  FASTRNN_DEVICE int64_t x_blocks() const { return gridDim.x; }
  // Dynamic shared memory, aligned to 16 bytes
  FASTRNN_DEVICE char* shared() const {
    extern __shared__ __align__(16) char memory[];
    return memory;
  }
  FASTRNN_DEVICE void sync() { __syncthreads(); }

  // The blocks of a cluster are adjacent along x; rank is this block's index among them.
#if __CUDA_ARCH__ >= 900
  FASTRNN_DEVICE int rank() const {
    uint32_t r;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return static_cast<int>(r);
  }
  // The address, in the block of that rank, of `mine` in shared memory
  template <class T>
  FASTRNN_DEVICE T* of_rank(T* mine, int rank) const {
    uint64_t address;
    asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(reinterpret_cast<uint64_t>(mine)), "r"(rank));
    return reinterpret_cast<T*>(address);
  }
  // Every thread of the cluster arrives, then waits; writes before arriving are visible to all threads afterwards.
  FASTRNN_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
  FASTRNN_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
#else
  FASTRNN_DEVICE int rank() const { return 0; }
  template <class T>
  FASTRNN_DEVICE T* of_rank(T* mine, int) const {
    return mine;
  }
  FASTRNN_DEVICE void cluster_arrive() {}
  FASTRNN_DEVICE void cluster_wait() { __syncthreads(); }
#endif
};

// Pushes 16 bytes to the shared memory of another block of the cluster. In PTX's memory model the store and its count
// release the thread's observed writes to threads that await the barrier.
#if __CUDA_ARCH__ >= 900
FASTRNN_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
// Another block of the cluster: the distance of its shared memory from this block's in the cluster's address space
struct Peer {
  uint32_t distance;
};
FASTRNN_DEVICE Peer peer(Block& block, int rank) {
  const uint32_t mine = shared_address(block.shared());
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(mine), "r"(rank));
  return {address - mine};
}
// One thread, before the cluster's first barrier
FASTRNN_DEVICE void start(PushBarrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// One thread, once per phase; without it the phase does not end.
FASTRNN_DEVICE void expect(PushBarrier* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Returns when the phase of that parity has ended; phases are counted from 0.
FASTRNN_DEVICE void await(Block&, const PushBarrier* barrier, uint32_t parity) {
  uint32_t over;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (over == 0);
}
// `mine`, `barrier`: addresses in this block
FASTRNN_DEVICE void push(Block&, Bits128* mine, const Bits128& bits, PushBarrier* barrier, Peer to) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   shared_address(mine) + to.distance),
               "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w), "r"(shared_address(barrier) + to.distance)
               : "memory");
}
#else
struct Peer {};
FASTRNN_DEVICE Peer peer(Block&, int) { return {}; }
FASTRNN_DEVICE void start(PushBarrier*) {}
FASTRNN_DEVICE void expect(PushBarrier*, uint32_t) {}
FASTRNN_DEVICE void await(Block&, const PushBarrier*, uint32_t) {}
FASTRNN_DEVICE void push(Block&, Bits128*, const Bits128&, PushBarrier*, Peer) {}
#endif

// Reads 16 bytes that another block has written during this kernel, bypassing the L1 cache.
FASTRNN_DEVICE Bits128 load_fresh(const void* p) {
  const uint4 v = __ldcg(static_cast<const uint4*>(p));
  return {v.x, v.y, v.z, v.w};
}

// One thread of a block, after a sync: increments the counter; a thread that sees this also sees the block's previous
// writes. In PTX's memory model the sync orders the other threads' writes before this fence, so one fence is enough.
FASTRNN_DEVICE void announce(uint32_t* counter) {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
// One thread of a block: returns when the counter has reached `target`; after a sync the block may read, bypassing the
// L1 cache (load_fresh).
FASTRNN_DEVICE void await_count(const uint32_t* counter, uint32_t target) {
  uint32_t value;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  } while (static_cast<int32_t>(value - target) < 0);
}

// Volatile: all lanes of a warp take part, so the compiler must not move it into a branch or merge two of them.
// sum (16×8) += a (16×16, of tf32 16×8) · b (16×8, of tf32 8×8), by the 32 threads of a warp together. With
// g = lane / 4, q = lane % 4: sum holds (g, 2q), (g, 2q+1), (g+8, 2q), (g+8, 2q+1); a and b as in the PTX manual.
FASTRNN_DEVICE void multiply_add(Block&, MmaBFloat16, float (&sum)[4], const Bits128& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
FASTRNN_DEVICE void multiply_add(Block&, MmaFloat16, float (&sum)[4], const Bits128& a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
FASTRNN_DEVICE void multiply_add(Block&, MmaTf32, float (&sum)[4], const Bits128& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Rounds a float to the ten mantissa bits of tf32 products.
FASTRNN_DEVICE float round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

}  // namespace fastrnn::cuda

#endif
