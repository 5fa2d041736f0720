#include "ops/finite.h"

#include <stdint.h>

namespace fastrnn {

namespace {

// Infinities and NaN are the values with all exponent bits set. A loop without early exit, which compilers vectorise.
template <class Bits>
bool rows_finite(const at::Tensor& t, Bits exponent) {
  const auto* row = static_cast<const Bits*>(t.const_data_ptr());
  const int64_t N = t.size(0), M = t.size(1), stride = t.stride(0);
  Bits found = 0;
  for (int64_t n = 0; n < N; ++n, row += stride) {
    for (int64_t m = 0; m < M; ++m) found |= static_cast<Bits>((row[m] & exponent) == exponent);
  }
  return found == 0;
}

}  // namespace

bool all_finite(const at::Tensor& t) {
  TORCH_INTERNAL_ASSERT_DEBUG_ONLY(t.dim() == 2 && (t.stride(1) == 1 || t.size(1) == 1));
  switch (t.scalar_type()) {
    case at::kDouble:
      return rows_finite<uint64_t>(t, 0x7ff0000000000000);
    case at::kBFloat16:
      return rows_finite<uint16_t>(t, 0x7f80);
    case at::kHalf:
      return rows_finite<uint16_t>(t, 0x7c00);
    case at::kFloat:
      return rows_finite<uint32_t>(t, 0x7f800000);
    default:
      return false;
  }
}

}  // namespace fastrnn
