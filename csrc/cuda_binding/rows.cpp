#include "cuda_binding/rows.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/layout.h"
#include "cuda_binding/errors.h"

namespace fastrnn::cuda {

namespace {

std::vector<int64_t> checked_batch_sizes(const Tensor& given, int64_t rows) {
  TORCH_CHECK_VALUE(
      given.device().is_cpu() && given.scalar_type() == at::kLong && given.dim() == 1 && given.numel() > 0,
      "batch_sizes: expected a non-empty one-dimensional int64 tensor on the CPU, got ", given.toString(), " of shape ",
      given.sizes());
  const Tensor sizes = given.contiguous();
  const int64_t* n = sizes.const_data_ptr<int64_t>();
  int64_t total = 0;
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    TORCH_CHECK_VALUE(n[t] > 0 && (t == 0 || n[t] <= n[t - 1]),
                      "batch_sizes: expected positive numbers that never grow, got ", n[t], " at step ", t);
    TORCH_CHECK_VALUE(!__builtin_add_overflow(total, n[t], &total),
                      "batch_sizes: expected a sum equal to the rows of the packed input, ", rows,
                      ", got one beyond 64 bits at step ", t);
  }
  TORCH_CHECK_VALUE(total == rows, "batch_sizes: expected a sum equal to the rows of the packed input, ", rows,
                    ", got ", total);
  return {n, n + sizes.numel()};
}

// Copies from the CPU do not wait: memory that is not pinned is read before the call returns.
Tensor on_device(const Tensor& t, const at::Device& device, at::ScalarType type) {
  return t.to(device, type, /*non_blocking=*/true).contiguous();
}

Tensor checked_lengths(const Tensor& given, const at::Device& device, int64_t steps, int64_t batch) {
  TORCH_CHECK_VALUE(at::isIntegralType(given.scalar_type(), false) && given.dim() == 1 && given.numel() == batch,
                    "lengths: expected an integer tensor of shape [", batch, "], got ", given.toString(), " of shape ",
                    given.sizes());
  TORCH_CHECK(!given.is_meta(), "lengths: expected a tensor with values, got one on ", given.device());
  if (given.device().is_cpu()) {
    const Tensor values = given.to(at::kLong).contiguous();
    const int64_t* n = values.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b) {
      TORCH_CHECK_VALUE(n[b] >= 0 && n[b] <= steps, "lengths: expected numbers from 0 to the ", steps,
                        " steps of the input, got ", n[b], " for row ", b);
    }
  }
  return on_device(given, device, at::kLong);
}

}  // namespace

Layout::Layout(const Tensor& x, const at::Device& device, const OptionalTensor& batch_sizes,
               const OptionalTensor& given_lengths, const OptionalTensor& given_reset) {
  const int64_t dims = batch_sizes ? 2 : 3;
  TORCH_CHECK(x.dim() == dims, "input must have ", dims, " dimensions, got ", x.dim());
  shape.assign(x.sizes().begin(), x.sizes().end() - 1);
  if (batch_sizes) {
    TORCH_CHECK_VALUE(!given_lengths && !given_reset, "packed input takes neither lengths nor reset");
    counts = checked_batch_sizes(*batch_sizes, x.size(0));
    steps = static_cast<int64_t>(counts.size());
    batch = counts.front();
    rows = x.size(0);
    offsets = at::empty({steps + 1}, at::TensorOptions(device).dtype(at::kLong));
    check(write_offsets(counts.data(), steps, offsets.mutable_data_ptr<int64_t>(),
                        c10::cuda::getCurrentCUDAStream(device.index()).stream()),
          "packed input");
    return;
  }
  steps = x.size(0);
  batch = x.size(1);
  rows = steps * batch;
  TORCH_CHECK(steps > 0, "Expected sequence length to be larger than 0 in RNN");
  if (given_reset) {
    TORCH_CHECK_VALUE(given_reset->scalar_type() == at::kBool && given_reset->dim() == 2 &&
                          given_reset->size(0) == steps && given_reset->size(1) == batch,
                      "reset: expected a bool tensor of shape [", steps, ", ", batch, "], got ",
                      given_reset->toString(), " of shape ", given_reset->sizes());
    TORCH_CHECK(!given_reset->is_meta(), "reset: expected a tensor with values, got one on ", given_reset->device());
    reset = on_device(*given_reset, device, at::kBool);
  }
  if (given_lengths) lengths = checked_lengths(*given_lengths, device, steps, batch);
}

Tensor Layout::gather(const Tensor& given) const { return dense(given).view({rows, given.size(-1)}); }

Tensor Layout::gather_without_padding(const Tensor& given) const {
  if (!lengths.defined()) return gather(given);
  const Tensor padding = at::arange(steps, lengths.options()).unsqueeze(1) >= lengths.unsqueeze(0);
  return gather(given.masked_fill(padding.unsqueeze(-1), 0));
}

Tensor Layout::shaped(const Tensor& t) const {
  std::vector<int64_t> sizes = shape;
  sizes.push_back(t.size(-1));
  return t.view(sizes);
}

Rows Layout::describe(bool reverse) const {
  return {steps,
          batch,
          static_cast<const int64_t*>(data_of(offsets)),
          static_cast<const int64_t*>(data_of(lengths)),
          static_cast<const bool*>(data_of(reset)),
          reverse};
}

}  // namespace fastrnn::cuda
