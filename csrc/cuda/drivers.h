// Runs a sequence by the driver that was chosen. Host code that launches kernels and never waits for them.
#pragma once

#include "cuda/kernels.h"

namespace fastrnn::cuda {

// The products of the step-wise driver, of the first `rows` rows of StepMemory.
struct Library {
  virtual ~Library() = default;
  virtual void recurrent(int64_t rows) = 0;   // product = operand · Rᵀ, of the first product; backward: operand · R
  virtual void projection(int64_t rows) = 0;  // outer = inner · W2ᵀ; backward: outer = inner · W2 (StepMemory)
};

// Rows that take the k-th step (packed input), or all.
struct Counts {
  const int64_t* counts;  // on the host, [T] or null
  int64_t batch;

  int64_t at(int64_t step) const { return counts != nullptr ? counts[step] : batch; }
};

// The whole sequence, launch by launch.
Error stepwise_forward(const FormatKernels& kernels, const ForwardArgs& args, const Counts& counts, Library& library,
                       Stream stream);
Error stepwise_backward(const FormatKernels& kernels, const BackwardArgs& args, const Counts& counts, Library& library,
                        Stream stream);

}  // namespace fastrnn::cuda
