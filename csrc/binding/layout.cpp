#include "binding/layout.h"

#include <ATen/Parallel.h>

#include <atomic>

namespace fastrnn {

namespace {

std::atomic<Split> split_override{Split::kAuto};

Tensor checked_batch_sizes(const Tensor& given, int64_t rows) {
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
  return sizes;
}

Tensor checked_lengths(const Tensor& given, int64_t steps, int64_t batch) {
  TORCH_CHECK_VALUE(at::isIntegralType(given.scalar_type(), false) && given.dim() == 1 && given.numel() == batch,
                    "lengths: expected an integer tensor of shape [", batch, "], got ", given.toString(), " of shape ",
                    given.sizes());
  TORCH_CHECK(!given.is_meta(), "lengths: expected a tensor with values, got one on ", given.device());
  const Tensor lengths = dense(given.to(at::kCPU, at::kLong));
  const int64_t* n = lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(n[b] >= 0 && n[b] <= steps, "lengths: expected numbers from 0 to the ", steps,
                      " steps of the input, got ", n[b], " for row ", b);
  }
  return lengths;
}

}  // namespace

Tensor present(const Tensor& t) { return t._is_zerotensor() ? at::zeros(t.sizes(), t.options()) : t; }

Tensor dense(const Tensor& t) {
  Tensor ordered = t._is_zerotensor() ? present(t) : t.contiguous();
  if (ordered.is_neg()) return ordered.resolve_neg();
  return ordered;
}

Tensor memory_of(const Tensor& t, at::IntArrayRef sizes) {
  Tensor view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(t.storage()), t.key_set(),
                                                         t.dtype());
  view.unsafeGetTensorImpl()->set_storage_offset(t.storage_offset());
  view.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return view;
}

Layout::Layout(const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
               const OptionalTensor& reset_flags) {
  const int64_t dims = batch_sizes ? 2 : 3;
  TORCH_CHECK(x.dim() == dims, "input must have ", dims, " dimensions, got ", x.dim());
  shape.assign(x.sizes().begin(), x.sizes().end() - 1);
  if (batch_sizes) {
    TORCH_CHECK_VALUE(!lengths && !reset_flags, "packed input takes neither lengths nor reset");
    const Tensor sizes = checked_batch_sizes(*batch_sizes, x.size(0));
    const int64_t* n = sizes.const_data_ptr<int64_t>();
    counts.assign(n, n + sizes.numel());
    steps = batch_sizes->numel();
    batch = counts.front();
  } else {
    steps = x.size(0);
    batch = x.size(1);
    counts.assign(steps, batch);
  }
  TORCH_CHECK(steps > 0, "Expected sequence length to be larger than 0 in RNN");
  Tensor flags;
  if (reset_flags) {
    TORCH_CHECK_VALUE(reset_flags->scalar_type() == at::kBool && reset_flags->dim() == 2 &&
                          reset_flags->size(0) == steps && reset_flags->size(1) == batch,
                      "reset: expected a bool tensor of shape [", steps, ", ", batch, "], got ",
                      reset_flags->toString(), " of shape ", reset_flags->sizes());
    TORCH_CHECK(!reset_flags->is_meta(), "reset: expected a tensor with values, got one on ", reset_flags->device());
    flags = dense(reset_flags->to(at::kCPU));
  }
  if (lengths) {
    const Tensor n = checked_lengths(*lengths, steps, batch);
    order = std::get<1>(n.sort(/*stable=*/true, /*dim=*/0, /*descending=*/true));
    const Tensor active = at::arange(steps, n.options()).unsqueeze(1) < n.index_select(0, order).unsqueeze(0);
    const Tensor size = active.sum(1);
    const int64_t* c = size.const_data_ptr<int64_t>();
    counts.assign(c, c + steps);
    const Tensor at = at::arange(steps, n.options()).unsqueeze(1) * batch + order.unsqueeze(0);
    index = at.masked_select(active);
  }
  offsets.resize(steps);
  for (int64_t t = 0; t < steps; ++t) {
    offsets[t] = rows;
    rows += counts[t];
  }
  if (flags.defined()) reset = lengths ? flags.reshape({-1}).index_select(0, index) : flags.reshape({-1});
}

Tensor Layout::gather(const Tensor& padded) const {
  const Tensor flat = padded.dim() > 2 && padded.is_contiguous()
                          ? memory_of(padded, {padded.size(0) * padded.size(1), padded.size(2)})
                          : (padded.dim() > 2 ? padded.flatten(0, 1) : padded);
  const Tensor ready = dense(flat);
  return index.defined() ? ready.index_select(0, index) : ready;
}

Tensor Layout::scatter(const Tensor& packed) const {
  if (!index.defined()) return shaped(packed);
  Tensor padded = at::zeros({steps * batch, packed.size(-1)}, packed.options());
  padded.index_copy_(0, index, packed);
  return shaped(padded);
}

Tensor Layout::shaped(const Tensor& rows) const {
  std::vector<int64_t> sizes = shape;
  sizes.push_back(rows.size(-1));
  return memory_of(rows, sizes);
}

Tensor Layout::sort(const Tensor& state) const { return order.defined() ? state.index_select(0, order) : dense(state); }

Tensor Layout::unsort(const Tensor& state) const {
  if (!order.defined()) return state;
  return at::empty_like(state).index_copy_(0, order, state);
}

int64_t Layout::capacity() const { return order.defined() ? steps * batch : rows; }

Sequence Layout::sequence(int64_t hidden, int64_t projected, bool reverse) const {
  const auto* flags = reset.defined() ? reinterpret_cast<const uint8_t*>(reset.const_data_ptr<bool>()) : nullptr;
  return {steps,          batch, hidden,  projected, counts.data(),
          offsets.data(), flags, reverse, threads(), split_override.load()};
}

int threads() { return at::get_num_threads(); }
void set_split(Split split) { split_override = split; }

}  // namespace fastrnn
