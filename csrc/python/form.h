// How the tensors of a call are laid out for its caller, where that is not the operators' own way.
#pragma once

#include "ops/tensors.h"

namespace fastrnn {

// The operators know x and y as (T, B, ·) and states as (B, ·).
struct Form {
  bool batch_first = false;  // x and y are (B, T, ·)
  bool no_steps = false;     // x and y have no dimension T
  bool no_batch = false;     // nothing has a dimension B
  bool layered = false;      // states have a leading dimension of 1

  bool plain() const { return !(batch_first || no_steps || no_batch || layered); }

  // As the operators know them: without a call of the dispatcher, unknown to autograd.
  Tensor rows(const Tensor& t) const;
  Tensor state(const Tensor& t) const;
  // Gives a new tensor (contiguous, nobody else's) that the operators made the caller's layout.
  void give_rows(Tensor& t) const;
  void give_state(Tensor& t) const;
  // The same by operations of torch, which autograd sees.
  Tensor tracked_rows(const Tensor& t) const;
  Tensor tracked_state(const Tensor& t) const;
  Tensor tracked_back_rows(const Tensor& t) const;
  Tensor tracked_back_state(const Tensor& t) const;
};

}  // namespace fastrnn
