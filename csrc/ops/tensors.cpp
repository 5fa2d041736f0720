#include "ops/tensors.h"

namespace fastrnn {

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

}  // namespace fastrnn
