// Interface between host and kernels. Raw device pointers and sizes: no headers of torch or CUDA.
//
// T time steps, B batch rows, H hidden size, P size of h (H, or that of the projection), G gates, R recurrent products
// (R1 of h, R2 of a vector computed in the step), Q per-unit parameters, S states, K saved values, N rows of all time
// steps. Offsets are 64 bits wide, those within a step of persistent kernels 32.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "simd/qualifiers.h"

namespace fastrnn::cuda {

constexpr int kMaxStates = 4;

// Block of a persistent kernel, and the tiles of its product (cuda/product.h)
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileRows = 16;    // matrix rows: M of the tensor cores
constexpr int kTileColumns = 8;  // batch rows: N
constexpr int kRowTiles = 2;     // row tiles of a warp
constexpr int kColumnTiles = 4;  // column tiles of a pass
constexpr int kGranule = 8;      // granularity of a block's units, and of a gate's units in an operand

// Row layout of a call: padded (row t·B + b), padded with lengths, or packed
struct Rows {
  int64_t steps, batch;
  const int64_t* offsets;  // packed: [T + 1], the first row of each time step; else null
  const int64_t* lengths;  // padded: [B], the time steps of each batch row; or null
  const bool* reset;       // padded: [T·B], true at the first step of a segment; or null
  bool reverse;

  // The time step that is computed k-th
  FASTRNN_FN int64_t step(int64_t k) const { return reverse ? steps - 1 - k : k; }
  FASTRNN_FN int64_t first_row(int64_t t) const { return offsets != nullptr ? offsets[t] : t * batch; }
  FASTRNN_FN int64_t row(int64_t t, int64_t b) const { return first_row(t) + b; }
  // Return true if there is memory for row b at step t, and if the network runs a step there.
  FASTRNN_FN bool exists(int64_t t, int64_t b) const { return offsets == nullptr || b < offsets[t + 1] - offsets[t]; }
  FASTRNN_FN bool active(int64_t t, int64_t b) const { return lengths != nullptr ? t < lengths[b] : exists(t, b); }
  // Return true if the k-th step of row b, k > 0, begins a later segment. Segments are the same in both directions: the
  // flag is at their first step in time.
  FASTRNN_FN bool anew(int64_t k, int64_t b) const {
    if (reset == nullptr) return false;
    const int64_t flagged = reverse ? step(k) + 1 : step(k);
    return reset[flagged * batch + b] && active(flagged, b);
  }
  // Number of time steps of row b
  FASTRNN_FN int64_t length(int64_t b) const {
    if (lengths != nullptr) return lengths[b] < steps ? lengths[b] : steps;
    if (offsets == nullptr) return steps;
    int64_t from = 0, to = steps;  // packed input, whose steps have decreasing numbers of rows
    while (from < to) {
      const int64_t middle = (from + to) / 2;
      if (exists(middle, b)) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    return from;
  }
  // Return true if the k-th step of row b starts from the result of its (k-1)-th step.
  FASTRNN_FN bool continues(int64_t k, int64_t b) const { return k > 0 && active(step(k - 1), b) && !anew(k, b); }
};

// A row of a step in the arrays of all steps, and in those of one step. Index: type of offsets within a step, and of
// the number of a row
template <class Index>
struct StepRow {
  Index number, b;

  FASTRNN_FN StepRow(Index first_of_step, Index b) : number(first_of_step + b), b(b) {}
  // Unit u of block k in an array with `blocks` blocks of `width` numbers in each row. The distance from row 0 is one
  // product of 32 bits by 32 bits; what it is added to is the same in every step.
  template <class T>
  FASTRNN_FN T* at(T* array, int blocks, int k, Index width, Index u) const {
    const Index row_bytes = blocks * width * static_cast<Index>(sizeof(T));
    using Bytes = std::conditional_t<std::is_const_v<T>, const char, char>;
    Bytes* first = reinterpret_cast<Bytes*>(array + (k * width + u));
    return reinterpret_cast<T*>(first + static_cast<int64_t>(number) * row_bytes);
  }
};

// Division of a call by the persistent drivers: blocks (unit slice, row slice); the unit slices of one row slice form a
// group that exchanges its states at every step; groups are independent.
struct Tiling {
  int units;         // units of a block, for all gates
  int unit_slices;   // blocks of a group
  int rows;          // batch rows of a group
  int row_slices;    // groups
  int matrix_rows;   // rows of a block's part of the matrix, rounded up to 8
  int64_t depth;     // columns of the matrix, rounded up to the product's block
  int warps_across;  // warps along the matrix's rows; the others divide its depth
  int warps_deep;
  int64_t shared_bytes;
  bool cluster;
  int compiled;  // hidden size that the kernel was compiled for (cuda/sizes.h); 0: any
};

// Memory of the persistent drivers' exchange between blocks (grid only), initially zero
struct Exchange {
  void* buffers;       // [row_slices, 2, rows rounded up to 8, depth] operands
  uint32_t* counters;  // [row_slices]
};

// Memory of the step-wise driver, B rows each. C: compute dtype of T. A step's second product, if any, is that of a
// projection, W2 = W_hr [P, H], or a cell's own, W2 [R2·H, H]; W is the number of rows of W2.
struct StepMemory {
  void* product;             // C [B, R1·H]: R·h; in backward C [B, P]: Rᵀ·∂L/∂rh; null if R1 = 0
  void* operand;             // T [B, P]: h; in backward T [B, R1·H]: ∂L/∂rh
  void* inner;               // T [B, H], operand of W2; in backward T [B, W], its product's gradient; null: no W2
  void* outer;               // C [B, W], product with W2; in backward C [B, H]
  void* states[kMaxStates];  // C [B, P or H]; in backward their gradients
};

struct ForwardArgs {
  Rows rows;
  int64_t hidden, projected;        // H, P
  const void* w_hh;                 // T [R·H, P]
  const void* b_hh;                 // T [R·H] or null
  const void* parameters;           // T [Q, H]
  const void* initial[kMaxStates];  // T [B, P or H] or null
  const void* restart[kMaxStates];  // the same for the states at rows.reset
  void* gates;                      // T [N, G·H]: W·x + b_ih, then (training) the first G saved values
  void* extra;                      // T [N, (K-G)·H], training, or null
  void* cells;                      // C [N, (S-1)·H], training, or null
  void* unprojected;                // T [N, H], training and a second product: its operand; or null
  void* y;                          // T [N, P]
  void* final_states[kMaxStates];   // T [B, P or H]
  bool training;
  Tiling tiling;
  Exchange exchange;
  StepMemory memory;
};

struct BackwardArgs {
  Rows rows;
  int64_t hidden, projected;
  const void* w_hh;
  const void* parameters;
  const void* initial[kMaxStates];
  const void* restart[kMaxStates];
  const void* gates;
  const void* extra;
  const void* cells;
  const void* unprojected;  // for a cell with a second product
  const void* y;
  const void* grad_y;                  // T [N, P] or null
  const void* grad_final[kMaxStates];  // T [B, P or H] or null
  void* da;                            // T [N, G·H]
  void* drh;                           // T [N, (R - split_from)·H], or null if nothing is split
  void* dparameters;                   // T [N, Q·H], ∂L/∂parameters of each row
  void* grad_initial[kMaxStates];      // T [B, P or H] or null
  void* restarts[kMaxStates];          // C [B, P or H], zeros: gradients of the states at rows.reset; or null
  bool own_restart;                    // restart differs from initial: `restarts` is not part of grad_initial
  void* dh;                            // T [N, P] or null: ∂L/∂h_t, summed over all paths, at the step
  void* later[kMaxStates];             // C [N, P or H] or null: the part of ∂L/∂state_t that comes from later steps
  double clip;                         // > 0: elements of ∂L/∂h_t are clipped to ±clip before they pass through a step
  bool projection;
  Tiling tiling;
  Exchange exchange;
  StepMemory memory;
};

}  // namespace fastrnn::cuda
