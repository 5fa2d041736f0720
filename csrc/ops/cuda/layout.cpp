#include "ops/cuda/layout.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/layout.h"
#include "ops/cuda/errors.h"
#include "ops/tensors.h"

namespace fastrnn::cuda {

namespace {

// Copies from the CPU are asynchronous: memory that is not pinned is read before the call returns.
Tensor on_device(const Tensor& t, const at::Device& device, at::ScalarType type) {
  return t.to(device, type, /*non_blocking=*/true).contiguous();
}

}  // namespace

CudaLayout::CudaLayout(const LayerCall& call, const Tensor& rows_like, const at::Device& device)
    : RowLayout(call, rows_like) {
  if (call.reset) reset = on_device(*call.reset, device, at::kBool);
  if (call.lengths) lengths = on_device(*call.lengths, device, at::kLong);
  if (!call.batch_sizes) return;
  offsets = at::empty({steps + 1}, at::TensorOptions(device).dtype(at::kLong));
  check(write_offsets(counts.data(), steps, offsets.mutable_data_ptr<int64_t>(),
                      c10::cuda::getCurrentCUDAStream(device.index()).stream()),
        "packed input");
}

Tensor CudaLayout::gather(const Tensor& given) const { return dense(given).view({rows, given.size(-1)}); }

Tensor CudaLayout::gather_without_padding(const Tensor& given) const {
  if (!lengths.defined()) return gather(given);
  const Tensor padding = at::arange(steps, lengths.options()).unsqueeze(1) >= lengths.unsqueeze(0);
  return gather(given.masked_fill(padding.unsqueeze(-1), 0));
}

Tensor CudaLayout::shaped(const Tensor& t) const { return t.view(sizes(t.size(-1))); }

Tensor CudaLayout::sort(const Tensor& state) const { return dense(state); }

Rows CudaLayout::describe(bool reverse) const {
  return {steps,
          batch,
          static_cast<const int64_t*>(data_of(offsets)),
          static_cast<const int64_t*>(data_of(lengths)),
          static_cast<const bool*>(data_of(reset)),
          reverse};
}

}  // namespace fastrnn::cuda
