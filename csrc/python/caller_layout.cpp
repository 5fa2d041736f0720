#include "python/caller_layout.h"

namespace fastrnn {

namespace {

Tensor strided(const Tensor& t, at::IntArrayRef sizes, at::IntArrayRef strides) {
  Tensor view = memory_of(t, sizes);
  view.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return view;
}

}  // namespace

Tensor CallerLayout::rows(const Tensor& t) const {
  if (!batch_first && !no_steps && !no_batch) return t;
  const int64_t at_step = batch_first ? 1 : 0, at_batch = batch_first || no_steps ? 0 : 1, width = t.size(-1);
  const int64_t steps = no_steps ? 1 : t.size(at_step), batch = no_batch ? 1 : t.size(at_batch);
  if (t.is_contiguous() && (!batch_first || steps == 1 || batch == 1)) return memory_of(t, {steps, batch, width});
  return strided(t, {steps, batch, width},
                 {no_steps ? 1 : t.stride(at_step), no_batch ? 1 : t.stride(at_batch), t.stride(-1)});
}

Tensor CallerLayout::state(const Tensor& t) const {
  if (!layered && !no_batch) return t;
  const int64_t batch = no_batch ? 1 : t.size(-2), width = t.size(-1);
  if (t.is_contiguous()) return memory_of(t, {batch, width});
  return strided(t, {batch, width}, {no_batch ? 1 : t.stride(-2), t.stride(-1)});
}

void CallerLayout::give_rows(Tensor& t) const {
  const int64_t steps = t.size(0), batch = t.size(1), width = t.size(2);
  c10::TensorImpl* impl = t.unsafeGetTensorImpl();
  if (batch_first) {
    impl->set_sizes_and_strides(at::IntArrayRef{batch, steps, width}, at::IntArrayRef{width, batch * width, 1});
  } else if (no_steps && no_batch) {
    impl->set_sizes_contiguous(at::IntArrayRef{width});
  } else if (no_steps || no_batch) {
    impl->set_sizes_contiguous(at::IntArrayRef{no_steps ? batch : steps, width});
  }
}

void CallerLayout::give_state(Tensor& t) const {
  const int64_t batch = t.size(0), width = t.size(1);
  if (layered && !no_batch) t.unsafeGetTensorImpl()->set_sizes_contiguous(at::IntArrayRef{1, batch, width});
  if (!layered && no_batch) t.unsafeGetTensorImpl()->set_sizes_contiguous(at::IntArrayRef{width});
}

Tensor CallerLayout::tracked_rows(const Tensor& t) const {
  if (batch_first) return t.transpose(0, 1);
  const Tensor batched = no_batch ? t.unsqueeze(-2) : t;
  return no_steps ? batched.unsqueeze(0) : batched;
}

Tensor CallerLayout::tracked_state(const Tensor& t) const {
  if (layered == no_batch) return t;  // unbatched: (1, ·) equals (B, ·)
  return layered ? t.squeeze(0) : t.unsqueeze(0);
}

Tensor CallerLayout::tracked_back_rows(const Tensor& t) const {
  if (batch_first) return t.transpose(0, 1);
  const Tensor stepless = no_steps ? t.squeeze(0) : t;
  return no_batch ? stepless.squeeze(-2) : stepless;
}

Tensor CallerLayout::tracked_back_state(const Tensor& t) const {
  if (layered == no_batch) return t;
  return layered ? t.unsqueeze(0) : t.squeeze(0);
}

}  // namespace fastrnn
