#include "ops/cpu/layout.h"

#include <ATen/Parallel.h>

#include <atomic>

#include "ops/tensors.h"

namespace fastrnn {

namespace {

std::atomic<Split> split_override{Split::kAuto};

}  // namespace

CpuLayout::CpuLayout(const LayerCall& call, const Tensor& rows_like, const at::Device&) : RowLayout(call, rows_like) {
  if (!call.batch_sizes) counts.assign(steps, batch);
  if (call.lengths) {
    const Tensor n = dense(call.lengths->to(at::kCPU, at::kLong));
    order = std::get<1>(n.sort(/*stable=*/true, /*dim=*/0, /*descending=*/true));
    const Tensor active = at::arange(steps, n.options()).unsqueeze(1) < n.index_select(0, order).unsqueeze(0);
    const Tensor size = active.sum(1);
    const int64_t* c = size.const_data_ptr<int64_t>();
    counts.assign(c, c + steps);
    const Tensor at = at::arange(steps, n.options()).unsqueeze(1) * batch + order.unsqueeze(0);
    index = at.masked_select(active);
  }
  offsets.resize(steps);
  rows = 0;
  for (int64_t t = 0; t < steps; ++t) {
    offsets[t] = rows;
    rows += counts[t];
  }
  if (!call.reset) return;
  const Tensor flags = dense(call.reset->to(at::kCPU)).reshape({-1});
  reset = index.defined() ? flags.index_select(0, index) : flags;
}

Tensor CpuLayout::gather(const Tensor& padded) const {
  const Tensor flat = padded.dim() > 2 && padded.is_contiguous()
                          ? memory_of(padded, {padded.size(0) * padded.size(1), padded.size(2)})
                          : (padded.dim() > 2 ? padded.flatten(0, 1) : padded);
  const Tensor ready = dense(flat);
  return index.defined() ? ready.index_select(0, index) : ready;
}

Tensor CpuLayout::scatter(const Tensor& packed) const {
  if (!index.defined()) return shaped(packed);
  Tensor padded = at::zeros({steps * batch, packed.size(-1)}, packed.options());
  padded.index_copy_(0, index, packed);
  return shaped(padded);
}

Tensor CpuLayout::shaped(const Tensor& rows) const { return memory_of(rows, sizes(rows.size(-1))); }

Tensor CpuLayout::sort(const Tensor& state) const {
  return order.defined() ? state.index_select(0, order) : dense(state);
}

Tensor CpuLayout::unsort(Tensor state) const {
  if (!order.defined()) return state;
  return at::empty_like(state).index_copy_(0, order, state);
}

int64_t CpuLayout::capacity() const { return order.defined() ? steps * batch : rows; }

Sequence CpuLayout::sequence(int64_t hidden, int64_t projected, bool reverse) const {
  const auto* flags = reset.defined() ? reinterpret_cast<const uint8_t*>(reset.const_data_ptr<bool>()) : nullptr;
  return {steps,          batch, hidden,  projected, counts.data(),
          offsets.data(), flags, reverse, threads(), split_override.load()};
}

int threads() { return at::get_num_threads(); }
void set_split(Split split) { split_override = split; }

}  // namespace fastrnn
