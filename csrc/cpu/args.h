// Arguments of the sequence drivers, from the torch-facing code. Plain data and pointers: no torch, no standard
// library.
//
// Rows. Time step t has counts[t] rows, stored together from row offsets[t] of every (N, ·) array, N = Σ counts. Counts
// never increase with t, so that the rows of a step are a prefix of the batch: a padded batch has counts[t] = B; packed
// input and `lengths` have their rows sorted by length. The direction only changes the order of visiting the steps.
#pragma once

#include <stdint.h>

#include "simd/cell_traits.h"

namespace fastrnn {

// Names that the library of the kernels exports: the torch-facing module and the shared objects of custom cells use
// them.
#define FASTRNN_SHARED __attribute__((visibility("default")))

constexpr int kMaxStates = 8;

// kFloat32TwoParts and kFloat32OnePart are float32 in memory; the factors of their products are sums of that many
// bfloat16 parts (cpu/parts.h).
enum class Format : int { kFloat32, kFloat64, kBFloat16, kFloat16, kFloat32TwoParts, kFloat32OnePart };
constexpr int kFormats = 6;

// Division of a time step's work among threads; kAuto: chosen by the cost model in plan.cpp
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
  int threads;  // maximum number of threads
  Split split;
};

// Below, T is the storage dtype, C the compute dtype (float64 for float64, else float32).
struct ForwardArgs {
  Sequence seq;
  const void* w_hh;                 // T [R·H, P]; R: gates with a recurrent product
  const void* b_ih;                 // T [G·H] or null: added to wx
  const void* b_hh;                 // T [R·H] or null
  const void* w_hr;                 // T [P, H] or null: no projection
  const void* parameters;           // T [Q, H], per-unit parameters
  const void* rh;                   // T [B, R·H] or null: R·h + b_hh of the only step, if T = 1 and precomputed
  const void* initial[kMaxStates];  // T [B, P] for h, [B, H] for others; null = zeros
  const void* restart[kMaxStates];  // the same for the states at seq.reset
  void* gates;                      // T [N, G·H] in: W·x; out, if training: the first min(G, K) saved values
  void* extra;                      // T [N, (K-G)·H], training and K > G
  void* cells;                      // C [N, (S-1)·H + sums], training: states other than h after each step; row sums
  void* unprojected;                // T [N, H], training and projection: h before it; else the vectors that are
                                    // multiplied besides h, [N, vectors·H]
  void* y;                          // T [N, P]
  void* final_states[kMaxStates];   // T [B, P or H]
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
  void* dparameters;                   // C [B, Q·H], zeros: ∂L/∂parameters of a row's steps is added
  void* grad_initial[kMaxStates];      // T [B, P or H] or null
  void* grad_restart[kMaxStates];      // T [B, P or H]; null: restart is initial, and grad_initial is the sum of both
  void* dh;                            // T [N, P] or null: ∂L/∂h_t, summed over all paths, at the step
  void* later[kMaxStates];             // C [N, P or H] or null: the part of ∂L/∂state_t that comes from later steps
  double clip;                         // > 0: elements of ∂L/∂h_t are clipped to ±clip before they pass through a step
  bool hidden_unused;    // no gradient, not even zeros, reaches the h of the last step (loss on the cell state alone)
  bool initial_product;  // false: omit drh·R of rows' first steps from grad_initial (T = 1: the caller adds it)
};

// A product of few rows N; see cpu/small.h.
struct SmallProduct {
  int64_t rows, columns, depth;
  const void *a, *b, *bias;  // bias: or null
  void* out;
  int64_t a_row, b_row, out_row;  // distance between rows
  bool add;                       // to the previous values
  const float* scales = nullptr;  // for narrow kernels with int8: the scales of b's rows
};

// out (M, N) = a (M, K) · b (K, N), plus bias (N) unless null, or plus the previous values with `add`. One of each
// operand's two strides is 1. See cpu/dense_matmul.h and cpu/parts_matmul.h.
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

// Products of an instruction set. Arrays of small products are indexed by dtype: float32, float64; that of large ones
// by Format, up to kFloat16.
struct ProductKernels {
  void (*by_rows[2])(const SmallProduct&);     // out (N, columns) = a (N, depth) · b (columns, depth)ᵀ + bias
  void (*by_columns[2])(const SmallProduct&);  // out (N, columns) = a (N, depth) · b (depth, columns)
  void (*outer[2])(const SmallProduct&);       // out (depth, columns) = a (N, depth)ᵀ · b (N, columns)
  // by_rows of float32 with b in bfloat16 or int8
  void (*narrow[2])(const SmallProduct&);
  // Large products return 0, or -1 if out of memory, or -2 for a write past the end of scratch memory (only checked in
  // debugging). Their bits do not depend on the number of threads. Null: BLAS at any size.
  int (*large[4])(const LargeProduct&);
  // float32 by the number of parts, one and two; null where float32 itself is as fast
  int (*in_parts[2])(const LargeProduct&);
};

struct CellKernels : CellTraits {
  // By Format; null if this instruction set has no kernels for it. They return 0, or -1 if out of memory, or -2 for a
  // write past the end of scratch memory (only checked in debugging).
  int (*forward[kFormats])(const ForwardArgs&);
  int (*backward[kFormats])(const BackwardArgs&);
};

}  // namespace fastrnn
