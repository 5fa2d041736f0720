// Matrix products by the library that torch has for them, on our own terms: cut into pieces, each computed by one
// thread, which takes the next one when it is done.
//
// So the result depends on the sizes alone, not on the number of threads; and a thread whose core another program has
// taken holds up one piece, or none (see Modest).
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace fastrnn::library {

// out (N, M) = a (N, K) · b (K, M) + bias (M), or with `add` out + a·b. Strides as they come. `links`: how many
// products are added up in one chain, of which there are at most 16; 0: as many as the library likes.
void product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias,
             bool add = false, int64_t links = 0);

}  // namespace fastrnn::library
