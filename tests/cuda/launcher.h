// The host's side of the emulator: an emulated GPU, its memory, and the Launcher that csrc/cuda/table.h needs.
#pragma once

#include <stdint.h>

#include <string>
#include <type_traits>

#include "cuda/table.h"

namespace fastrnn::emulator {

struct Settings {
  int processors = 8;  // each runs one block
  int64_t shared_bytes = 227 * 1024;
  int largest_cluster = 8;
  int busy = 0;       // processors that other work occupies
  uint64_t seed = 0;  // of the order in which blocks and threads run
};
Settings& settings();

// Errors of a launch; the first two have CUDA's values.
constexpr int kInvalidValue = 1, kTooLarge = 720, kFailed = 999;

struct Grid {
  int64_t x, y;
  int threads;
  int64_t shared_bytes;
  int cluster;  // blocks along x; 0: no clusters
  bool cooperative;
};
using Entry = void (*)(cuda::Block&, const void*);

// Runs all blocks to their end. Returns 0 or an error; after kFailed, failure() has the message.
int launch(const Grid& grid, Entry entry, const void* arguments);
const std::string& failure();
void forget_failure();

// Counters of the launches since the last reset, summed over all blocks.
struct Counted {
  int64_t block_barriers, cluster_barriers, announcements;
  int64_t products;         // of warps
  int64_t fresh_bytes;      // bytes in global memory that were read and written by another block
  int64_t pushed_bytes;     // written into the shared memory of a cluster's other blocks
  int64_t push_phases;      // of barriers that count pushed bytes
  int64_t exchanged_bytes;  // written into the memory that a grid's blocks exchange through (FASTRNN_MEMORY_CHECK)
};
Counted& counted();

// Number of blocks of a persistent kernel, or of clusters of `cluster` blocks, that fit on the machine at once.
int capacity(int64_t shared_bytes, int cluster);

struct Launcher {
  template <class Kernel>
  static int capacity(const cuda::Tiling& t, int* count) {
    *count = emulator::capacity(Kernel::shared_bytes(t), t.cluster ? t.unit_slices : 0);
    return 0;
  }
  template <class Kernel>
  static int persistent(const typename Kernel::Args& a, cuda::Stream) {
    const cuda::Tiling& t = a.tiling;
    const Grid grid{t.unit_slices, t.row_slices, cuda::kThreads, Kernel::shared_bytes(t), t.cluster ? t.unit_slices : 0,
                    !t.cluster};
    return launch(
        grid,
        [](cuda::Block& block, const void* args) {
          Kernel::run(block, *static_cast<const typename Kernel::Args*>(args));
        },
        &a);
  }

  static constexpr int kStepThreads = 128;
  template <class Kernel>
  static int step(const typename Kernel::Args& a, int64_t k, int64_t width, cuda::Stream) {
    struct Both {
      const typename Kernel::Args& args;
      int64_t k;
    } both{a, k};
    const Grid grid{a.rows.batch, (width + kStepThreads - 1) / kStepThreads, kStepThreads, 0, 0, false};
    return launch(
        grid,
        [](cuda::Block& block, const void* p) {
          const Both& both = *static_cast<const Both*>(p);
          Kernel::run(block, both.args, both.k);
        },
        &both);
  }
};

}  // namespace fastrnn::emulator
