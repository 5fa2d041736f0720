// Matrix products by torch's BLAS, cut into pieces that are computed by one thread each; threads take pieces
// dynamically.
//
// The result therefore depends on the sizes only, not on the number of threads, and a thread whose core is taken by
// another process delays at most one piece (see ThreadLimit).
#pragma once

#include <optional>

#include "ops/aten.h"

namespace fastrnn::blas {

// out (N, M) = a (N, K) · b (K, M) + bias (M), or with `add` out + a·b; any strides. `links`: number of products that
// are accumulated in one chain, of which there are at most 16; 0: left to BLAS.
void product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias,
             bool add = false, int64_t links = 0);

}  // namespace fastrnn::blas
