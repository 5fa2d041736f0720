// Caller layout of a call's tensors, if it differs from the operators' layout.
#pragma once

#include "ops/tensors.h"

namespace fastrnn {

// The operators use (T, B, ·) for x and y, and (B, ·) for states.
struct CallerLayout {
  bool batch_first = false;  // x and y are (B, T, ·)
  bool no_steps = false;     // x and y have no dimension T
  bool no_batch = false;     // nothing has a dimension B
  bool layered = false;      // states have a leading dimension of 1

  bool plain() const { return !(batch_first || no_steps || no_batch || layered); }

  // Views in the operators' layout: without the dispatcher, invisible to autograd
  Tensor rows(const Tensor& t) const;
  Tensor state(const Tensor& t) const;
  // Converts a new contiguous tensor of the operators to the caller's layout, in place.
  void give_rows(Tensor& t) const;
  void give_state(Tensor& t) const;
  // The same by torch operations that autograd records
  Tensor tracked_rows(const Tensor& t) const;
  Tensor tracked_state(const Tensor& t) const;
  Tensor tracked_back_rows(const Tensor& t) const;
  Tensor tracked_back_state(const Tensor& t) const;
};

}  // namespace fastrnn
