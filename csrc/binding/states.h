// Initial states of an operator's call.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

namespace fastrnn {

// `Tensor[]?` of the schemas. None and an empty list both mean zeros: AOTInductor passes None where an exported program
// has an empty list.
using OptionalTensors = std::optional<at::TensorList>;

// The states, or an empty list. The dispatcher does not look into a `Tensor[]?`, so a tensor that only a subclass of
// Tensor can read may arrive here if the other arguments are ordinary.
inline at::TensorList states_of(const OptionalTensors& given) {
  if (!given) return {};
  const bool excluded = c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::Python);
  for (const at::Tensor& t : *given) {
    TORCH_CHECK(excluded || !t.key_set().has(c10::DispatchKey::Python),
                "states: expected ordinary tensors as the other arguments are, got a subclass with __torch_dispatch__");
  }
  return *given;
}

}  // namespace fastrnn
