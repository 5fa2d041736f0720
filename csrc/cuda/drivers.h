// Runs a sequence by the chosen driver. Host code that launches kernels and never synchronises.
#pragma once

#include "cuda/kernels.h"

namespace fastrnn::cuda {

// Products of the step-wise driver, for the first `rows` rows of StepMemory
struct Library {
  virtual ~Library() = default;
  virtual void recurrent(int64_t rows) = 0;   // product = operand · Rᵀ, for the first product; backward: operand · R
  virtual void projection(int64_t rows) = 0;  // outer = inner · W2ᵀ; backward: outer = inner · W2 (StepMemory)
};

// Number of rows active at the k-th step (packed input), or all
struct Counts {
  const int64_t* counts;  // on the host, [T] or null
  int64_t batch;

  int64_t at(int64_t step) const { return counts != nullptr ? counts[step] : batch; }
};

// The whole sequence, launch by launch
Error stepwise_forward(const FormatKernels& kernels, const ForwardArgs& args, const Counts& counts, Library& library,
                       Stream stream);
Error stepwise_backward(const FormatKernels& kernels, const BackwardArgs& args, const Counts& counts, Library& library,
                        Stream stream);

}  // namespace fastrnn::cuda
