// How the rows of a call lie: padded, packed, or padded with lengths (which is run as packed).
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "cpu/args.h"

namespace fastrnn {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Layout {
  int64_t steps = 0, batch = 0, rows = 0;  // T, B, N
  std::vector<int64_t> counts, offsets;
  Tensor order;                // [B] original row of each sorted row; undefined if rows stay as they are
  Tensor index;                // [N] t·B + row of each packed row; likewise
  Tensor reset;                // [N] bool, in the order of the rows
  std::vector<int64_t> shape;  // leading dimensions of the caller's x and y

  // x: (T, B, ·) or, with batch_sizes, (N, ·). Raises what a user should read if an argument does not fit.
  Layout(const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
         const OptionalTensor& reset_flags);

  // The caller's (…, W) tensor as contiguous (N, W) in the order of the rows.
  Tensor gather(const Tensor& padded) const;
  // The way back: rows into a tensor of the caller's shape, zeros where there is no step.
  Tensor scatter(const Tensor& packed) const;
  // A tensor of capacity() rows with the caller's leading dimensions, as a view.
  Tensor shaped(const Tensor& rows) const;
  // A state (B, W) in the order of the rows, contiguous, and back.
  Tensor sort(const Tensor& state) const;
  Tensor unsort(const Tensor& state) const;
  // Rows allocated for what is kept between forward and backward: N, or T·B where N depends on the lengths' values.
  int64_t capacity() const;
  bool plain() const { return !order.defined() && !reset.defined() && counts.back() == batch; }

  Sequence sequence(int64_t hidden, int64_t projected, bool reverse) const;
};

// The tensor as a kernel may read it: its values in memory and in order, none of them waiting to be negated.
Tensor dense(const Tensor& t);
inline OptionalTensor dense_if(const OptionalTensor& t) { return t ? OptionalTensor(dense(*t)) : t; }
// The same but for strides, which the products take.
Tensor present(const Tensor& t);

inline const void* data_of(const OptionalTensor& t) { return t && t->defined() ? t->const_data_ptr() : nullptr; }

// The memory of a contiguous tensor under other sizes, without a call of torch's dispatcher: unknown to autograd, for
// use inside an operator.
Tensor memory_of(const Tensor& t, at::IntArrayRef sizes);

// Number of threads torch would use now.
int threads();
// Overrides the choice of plan.cpp (experiments, tests).
void set_split(Split split);

}  // namespace fastrnn
