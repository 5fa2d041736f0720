// Row layout on the CPU: packed or padded. Padded rows with lengths are converted to packed rows, sorted by length.
#pragma once

#include "cpu/args.h"
#include "ops/checked.h"

namespace fastrnn {

struct CpuLayout : RowLayout {
  // `counts` holds the rows of each time step, padded or packed.
  std::vector<int64_t> offsets;  // the first row of each time step
  Tensor order;                  // [B] original row of each sorted row; undefined if rows are not sorted
  Tensor index;                  // [N] t·B + row of each packed row; likewise
  Tensor reset;                  // [N] bool, in the order of the rows

  CpuLayout(const LayerCall& call, const Tensor& rows_like, const at::Device&);

  // The caller's (…, W) tensor as contiguous (N, W) in the order of the rows.
  Tensor gather(const Tensor& padded) const;
  Tensor gather_without_padding(const Tensor& padded) const { return gather(padded); }
  // The inverse: rows to a tensor of the caller's shape, zeros in padding.
  Tensor scatter(const Tensor& packed) const;
  // A tensor of capacity() rows with the caller's leading dimensions, as a view.
  Tensor shaped(const Tensor& rows) const;
  // A state (B, W) in the layout's row order, contiguous, and the inverse.
  Tensor sort(const Tensor& state) const;
  Tensor unsort(Tensor state) const;
  // Number of rows allocated for tensors saved for backward: N, or T·B if N depends on the values of lengths.
  int64_t capacity() const;
  // Return true if h before a time step is y of the previous step, for all rows.
  bool plain() const { return !order.defined() && !reset.defined() && counts.back() == batch; }

  Sequence sequence(int64_t hidden, int64_t projected, bool reverse) const;
};

// The number of threads that torch would use now
int threads();
// Overrides the choice of plan.cpp (for experiments and tests).
void set_split(Split split);

}  // namespace fastrnn
