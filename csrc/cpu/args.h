// What the torch-facing code hands to a sequence driver. Plain data and pointers: no torch, no standard library.
//
// Rows. Step t has counts[t] rows, stored together from row offsets[t] of every (N, ·) array, N = Σ counts. Counts
// never grow with t, so that the rows of a step are a prefix of the batch: a padded batch has counts[t] = B, packed
// input and `lengths` have their rows sorted by length. Direction only changes the order in which steps are visited.
#pragma once

#include <stdint.h>

#include "simd/cell_traits.h"

namespace fastrnn {

// What kernels call that were compiled into another shared object: a user's cell.
#define FASTRNN_SHARED __attribute__((visibility("default")))

constexpr int kMaxStates = 8;

// kFloat32TwoParts and kFloat32OnePart are float32 in memory, the factors of their products sums of so many bfloat16
// parts (cpu/parts.h).
enum class Format : int { kFloat32, kFloat64, kBFloat16, kFloat16, kFloat32TwoParts, kFloat32OnePart };
constexpr int kFormats = 6;

// How the work of one step is shared. kAuto leaves it to the cost model in plan.cpp.
enum class Split : int { kAuto, kNone, kRows, kUnits };

struct Sequence {
  int64_t steps;           // T ≥ 1
  int64_t batch;           // B ≥ 0, rows of the states; counts[0] ≤ B
  int64_t hidden;          // H
  int64_t projected;       // P, width of h; H without projection
  const int64_t* counts;   // [T]
  const int64_t* offsets;  // [T]
  const uint8_t* reset;    // [N] true at the first step of a segment, or null
  bool reverse;
  int threads;  // most that may be used
  Split split;
};

// T below is the storage format, C what it is computed in (float64 for float64, float32 for the rest).
struct ForwardArgs {
  Sequence seq;
  const void* w_hh;                 // T [R·H, P]; R: gates that have a recurrent product
  const void* b_ih;                 // T [G·H] or null: added to wx
  const void* b_hh;                 // T [R·H] or null
  const void* w_hr;                 // T [P, H] or null: no projection
  const void* parameters;           // T [Q, H], a cell's numbers for each unit
  const void* rh;                   // T [B, R·H] or null: R·h + b_hh of the only step, if T = 1 and the caller has it
  const void* initial[kMaxStates];  // T [B, P] for h, [B, H] for others; null = zeros
  const void* restart[kMaxStates];  // the same of the states at seq.reset
  void* gates;                      // T [N, G·H] in: W·x; out, if training: the first min(G, K) saved values
  void* extra;                      // T [N, (K-G)·H], training and K > G
  void* cells;                     // C [N, (S-1)·H + sums], training: states other than h after each step; a row's sums
  void* unprojected;               // T [N, H], training and projection: h before it; else the vectors that are
                                   // multiplied besides h, [N, vectors·H]
  void* y;                         // T [N, P]
  void* final_states[kMaxStates];  // T [B, P or H]
  bool training;
};

struct BackwardArgs {
  Sequence seq;
  const void* w_hh;
  const void* w_hr;
  const void* parameters;
  const void* initial[kMaxStates];
  const void* restart[kMaxStates];
  const void* gates;
  const void* extra;
  const void* cells;
  const void* unprojected;
  const void* y;
  const void* grad_y;                  // T [N, P] or null
  const void* grad_final[kMaxStates];  // T [B, P or H] or null
  void* da;                            // T [N, G·H]
  void* drh;                           // T [N, (R - split_from)·H], ∂L/∂rh of the gates where it differs from da
  void* dparameters;                   // C [B, Q·H], zeros: ∂L/∂parameters of a row's steps is added to it
  void* grad_initial[kMaxStates];      // T [B, P or H] or null
  void* grad_restart[kMaxStates];      // T [B, P or H]; null: restart is initial, and grad_initial the sum of both
  void* dh;                            // T [N, P] or null: ∂L/∂h_t, all paths together, as it goes through the step
  void* later[kMaxStates];             // C [N, P or H] or null: the part of ∂L/∂state_t that comes from later steps
  double clip;                         // > 0: elements of ∂L/∂h_t are cut to ±clip before they go through a step
  bool hidden_unused;    // no gradient, not even zeros, reaches the h of the last step (loss on the cell state alone)
  bool initial_product;  // false: leave drh·R of rows' first steps out of grad_initial (T = 1: the caller adds it)
};

// A product of few rows N. See cpu/small.h.
struct SmallProduct {
  int64_t rows, columns, depth;
  const void *a, *b, *bias;  // bias: or null
  void* out;
  int64_t a_row, b_row, out_row;  // from one row to the next
  bool add;                       // to what is there
  const float* scales = nullptr;  // of narrow kernels with int8: what a row of b is multiplied with
};

// out (M, N) = a (M, K) · b (K, N), plus bias (N) unless null, or plus what is there with `add`. Of each operand's two
// strides, one is 1. See cpu/dense_matmul.h and cpu/parts_matmul.h.
struct LargeProduct {
  int64_t rows, columns, depth;  // M, N, K
  const void* a;
  int64_t a_row, a_depth;
  const void* b;
  int64_t b_depth, b_column;
  const void* bias;
  void* out;
  int64_t out_row;
  bool add;
  int threads;
};

// Products of an instruction set. Arrays of small and large ones are by dtype: float32, float64.
struct ProductKernels {
  void (*by_rows[2])(const SmallProduct&);     // out (N, columns) = a (N, depth) · b (columns, depth)ᵀ + bias
  void (*by_columns[2])(const SmallProduct&);  // out (N, columns) = a (N, depth) · b (depth, columns)
  void (*outer[2])(const SmallProduct&);       // out (depth, columns) = a (N, depth)ᵀ · b (N, columns)
  // by_rows of float32 with b in bfloat16, or in int8.
  void (*narrow[2])(const SmallProduct&);
  // Large ones return 0, or -1 out of memory, or -2 a write past the end of scratch memory (checked in debugging only).
  // The same bits for any number of threads.
  int (*large[2])(const LargeProduct&);
  // float32 by the number of parts, one and two; null where float32 itself is as fast.
  int (*in_parts[2])(const LargeProduct&);
};

struct CellKernels : CellTraits {
  // By Format. Null: this instruction set has nothing for it (formats of parts alone). They return 0, or -1 out of
  // memory, or -2 a write past the end of scratch memory (checked in debugging only).
  int (*forward[kFormats])(const ForwardArgs&);
  int (*backward[kFormats])(const BackwardArgs&);
};

}  // namespace fastrnn
