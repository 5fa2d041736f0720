#include "ops/cpu/buffers.h"

#include <ATen/EmptyTensor.h>

#include "cpu/workspace.h"

namespace fastrnn {

namespace {

constexpr int64_t kFence = 64;
constexpr uint8_t kSentinel = 0xa5;

}  // namespace

at::Tensor new_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor out(at::detail::empty_cpu(sizes, options));  // without the dispatcher
  prefer_large_pages(out.mutable_data_ptr(), out.nbytes());
  return out;
}

at::Tensor Buffers::empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!poison()) return new_tensor(sizes, options);
  const auto bytes = c10::multiply_integers(sizes) *
                     static_cast<int64_t>(c10::elementSize(c10::typeMetaToScalarType(options.dtype())));
  at::Tensor raw = at::full({bytes + kFence}, 0xff, options.dtype(at::kByte));
  raw.slice(0, bytes).fill_(kSentinel);
  guarded_.push_back(raw);
  return raw.slice(0, 0, bytes).view(c10::typeMetaToScalarType(options.dtype())).view(sizes);
}

void Buffers::verify(int code) const {
  TORCH_CHECK_WITH(OutOfMemoryError, code != -1, "fastrnn: not enough memory for the scratch space of a sequence");
  TORCH_CHECK(code != -2, "fastrnn: a kernel wrote past the end of its scratch memory");
  for (const at::Tensor& raw : guarded_) {
    TORCH_CHECK(raw.slice(0, raw.numel() - kFence).eq(kSentinel).all().item<bool>(),
                "fastrnn: a kernel wrote past the end of an output");
  }
}

}  // namespace fastrnn
