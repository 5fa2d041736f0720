// The sizes of a cell that its kernels, the operators and Python have in common. No torch, no standard library.
#pragma once

namespace fastrnn {

struct CellTraits {
  int gates;                 // G
  int recurrent;             // R, gates with a recurrent product, R·h
  int second;                // how many of them multiply another vector than h
  int states;                // S
  int saved;                 // K, values of each unit and time step that are saved for backward
  int split_from;            // ∂L/∂(R·h) is ∂L/∂(W·x) for the gates before this one
  int parameters;            // Q, per-unit parameters; rows of w_hh behind the gates'
  bool reads_hidden;         // the element-wise stage reads h
  int vectors;               // vectors besides h that are multiplied; a projection's is not among them
  const int* vector_blocks;  // [vectors] how many of the `second` matrices each of them has
  int totals;                // sums over all units of a batch row
  bool staged;               // see cpu/staged.h
};

}  // namespace fastrnn
