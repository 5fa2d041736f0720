// Row layout on a GPU: padded, with or without lengths, or packed. No synchronisation with the device.
#pragma once

#include "cuda/args.h"
#include "ops/checked.h"

namespace fastrnn::cuda {

struct CudaLayout : RowLayout {
  // `rows` counts the rows in memory: T·B with or without lengths.
  Tensor offsets;  // packed: [T + 1]
  Tensor lengths;  // [B] int64, or undefined
  Tensor reset;    // [T, B] bool, or undefined

  // On a GPU, a length beyond T counts as T, a negative one as 0.
  CudaLayout(const LayerCall& call, const Tensor& rows_like, const at::Device& device);

  // The caller's (…, W) tensor as contiguous (N, W)
  Tensor gather(const Tensor& given) const;
  // The same, with zeros in padding, which may hold NaN: products have no predicates.
  Tensor gather_without_padding(const Tensor& given) const;
  // (N, W) with the caller's leading dimensions, as a view
  Tensor scatter(const Tensor& rows) const { return shaped(rows); }
  Tensor shaped(const Tensor& rows) const;
  // States are in the caller's order.
  Tensor sort(const Tensor& state) const;
  Tensor unsort(Tensor state) const { return state; }
  int64_t capacity() const { return rows; }
  // Return true if h before a time step is y of the previous step, for all rows.
  bool plain() const { return !lengths.defined() && !reset.defined() && (counts.empty() || counts.back() == batch); }

  Rows describe(bool reverse) const;
};

}  // namespace fastrnn::cuda
