#include "ops/checked.h"
#include "ops/tensors.h"

namespace fastrnn {

namespace {

std::vector<int64_t> checked_batch_sizes(const Tensor& given, int64_t rows) {
  TORCH_CHECK_VALUE(
      given.device().is_cpu() && given.scalar_type() == at::kLong && given.dim() == 1 && given.numel() > 0,
      "batch_sizes: expected a non-empty one-dimensional int64 tensor on the CPU, got ", given.toString(), " of shape ",
      given.sizes());
  const Tensor sizes = dense(given);
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

void check_lengths(const Tensor& given, int64_t steps, int64_t batch) {
  TORCH_CHECK_VALUE(at::isIntegralType(given.scalar_type(), false) && given.dim() == 1 && given.numel() == batch,
                    "lengths: expected an integer tensor of shape [", batch, "], got ", given.toString(), " of shape ",
                    given.sizes());
  TORCH_CHECK(!given.is_meta(), "lengths: expected a tensor with values, got one on ", given.device());
  if (!given.device().is_cpu()) return;
  const Tensor lengths = dense(given.to(at::kLong));
  const int64_t* n = lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(n[b] >= 0 && n[b] <= steps, "lengths: expected numbers from 0 to the ", steps,
                      " steps of the input, got ", n[b], " for row ", b);
  }
}

void check_reset(const Tensor& given, int64_t steps, int64_t batch) {
  TORCH_CHECK_VALUE(
      given.scalar_type() == at::kBool && given.dim() == 2 && given.size(0) == steps && given.size(1) == batch,
      "reset: expected a bool tensor of shape [", steps, ", ", batch, "], got ", given.toString(), " of shape ",
      given.sizes());
  TORCH_CHECK(!given.is_meta(), "reset: expected a tensor with values, got one on ", given.device());
}

}  // namespace

RowLayout::RowLayout(const LayerCall& call, const Tensor& rows_like) {
  const int64_t dims = call.batch_sizes ? 2 : 3;
  TORCH_CHECK(rows_like.dim() == dims, "input must have ", dims, " dimensions, got ", rows_like.dim());
  shape.assign(rows_like.sizes().begin(), rows_like.sizes().end() - 1);
  if (call.batch_sizes) {
    TORCH_CHECK_VALUE(!call.lengths && !call.reset, "packed input takes neither lengths nor reset");
    counts = checked_batch_sizes(*call.batch_sizes, rows_like.size(0));
    steps = static_cast<int64_t>(counts.size());
    batch = counts.front();
    rows = rows_like.size(0);
    return;
  }
  steps = rows_like.size(0);
  batch = rows_like.size(1);
  rows = steps * batch;
  TORCH_CHECK(steps > 0, "Expected sequence length to be larger than 0 in RNN");
  if (call.reset) check_reset(*call.reset, steps, batch);
  if (call.lengths) check_lengths(*call.lengths, steps, batch);
}

}  // namespace fastrnn
