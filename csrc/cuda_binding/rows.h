// How the rows of a call lie on a GPU. Nothing here waits for the device, nor reads from it.
#pragma once

#include "cuda/args.h"
#include "cuda_binding/memory.h"

namespace fastrnn::cuda {

struct Layout {
  int64_t steps = 0, batch = 0, rows = 0;  // T, B, N: rows in memory, T·B with or without lengths
  std::vector<int64_t> counts;             // packed: rows of each step
  Tensor offsets;                          // packed: [T + 1]
  Tensor lengths;                          // [B] int64, or undefined
  Tensor reset;                            // [T, B] bool, or undefined
  std::vector<int64_t> shape;              // leading dimensions of the caller's x and y

  // x: (T, B, ·) or, with batch_sizes, (N, ·). Raises what a user should read if an argument does not fit. Values of
  // lengths are checked only where they are given on the CPU; on a GPU, one beyond T counts as T, a negative one as 0.
  Layout(const Tensor& x, const at::Device& device, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
         const OptionalTensor& reset);

  // The caller's (…, W) tensor as contiguous (N, W).
  Tensor gather(const Tensor& given) const;
  // The same, with zeros where no step is taken: padding may hold NaN, and a product has no predicates.
  Tensor gather_without_padding(const Tensor& given) const;
  // (N, W) with the caller's leading dimensions, as a view.
  Tensor shaped(const Tensor& rows) const;
  // Whether h before a step is y of the step before, for every row alike.
  bool plain() const { return !lengths.defined() && !reset.defined() && (counts.empty() || counts.back() == batch); }

  Rows describe(bool reverse) const;
};

}  // namespace fastrnn::cuda
