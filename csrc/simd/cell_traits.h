// Sizes of a cell that its kernels, the operators and Python share. No torch, no standard library.
#pragma once

namespace fastrnn {

struct CellTraits {
  int gates;                 // G
  int recurrent;             // R, gates with a recurrent product, R·h
  int second;                // number of those that multiply another vector than h
  int states;                // S
  int saved;                 // K, values saved for backward for each unit and time step
  int split_from;            // ∂L/∂(R·h) equals ∂L/∂(W·x) for the gates before this one
  int parameters;            // Q, per-unit parameters; rows of w_hh after those of the gates
  bool reads_hidden;         // the element-wise stage reads h
  int vectors;               // vectors besides h that are multiplied, not counting a projection's
  const int* vector_blocks;  // [vectors] number of the `second` matrices for each of them
  int totals;                // sums over all units of a batch row
  bool staged;               // see cpu/staged.h
};

}  // namespace fastrnn
