// Row layout on the CPU: packed, or padded. Padded rows with lengths are run as packed ones, sorted by length.
#pragma once

#include "cpu/args.h"
#include "ops/checked.h"

namespace fastrnn {

struct CpuLayout : RowLayout {
  // `counts` is that of each step, padded or packed.
  std::vector<int64_t> offsets;  // of each step, its first row
  Tensor order;                  // [B] original row of each sorted row; undefined if rows stay as they are
  Tensor index;                  // [N] t·B + row of each packed row; likewise
  Tensor reset;                  // [N] bool, in the order of the rows

  CpuLayout(const LayerCall& call, const Tensor& rows_like, const at::Device&);

  // The caller's (…, W) tensor as contiguous (N, W) in the order of the rows.
  Tensor gather(const Tensor& padded) const;
  Tensor gather_without_padding(const Tensor& padded) const { return gather(padded); }
  // The way back: rows into a tensor of the caller's shape, zeros where there is no step.
  Tensor scatter(const Tensor& packed) const;
  // A tensor of capacity() rows with the caller's leading dimensions, as a view.
  Tensor shaped(const Tensor& rows) const;
  // A state (B, W) in the order of the rows, contiguous, and back.
  Tensor sort(const Tensor& state) const;
  Tensor unsort(Tensor state) const;
  // Rows allocated for what is saved for backward: N, or T·B where N depends on the lengths' values.
  int64_t capacity() const;
  // Return true if h before a step is y of the step before, for every row alike.
  bool plain() const { return !order.defined() && !reset.defined() && counts.back() == batch; }

  Sequence sequence(int64_t hidden, int64_t projected, bool reverse) const;
};

// Number of threads torch would use now.
int threads();
// Overrides the choice of plan.cpp (experiments, tests).
void set_split(Split split);

}  // namespace fastrnn
