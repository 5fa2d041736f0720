// Profiler range of a call in torch.profiler.
#pragma once

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/call.h"

namespace fastrnn {

// "fastrnn::lstm", with a suffix "fastrnn::lstm_cell", while alive. Operators in torch.ops have the dispatcher's
// ranges, backward passes those of autograd's nodes. Without a profiler it costs about ten nanoseconds, a quarter of an
// unconditional RecordFunction.
class Range {
 public:
  // `inputs`: called if a profiler runs; returns the tensors whose shapes it may record, undefined ones among them.
  template <class Inputs>
  Range(const std::string& cell, const char* suffix, const Inputs& inputs) {
    auto profilers = at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
    if (__builtin_expect(static_cast<long>(profilers.has_value()), 0) == 0) return;
    shown_ = std::make_unique<Shown>(std::move(*profilers), "fastrnn::" + cell + suffix, inputs());
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  struct Shown {
    std::string name;
    std::vector<c10::IValue> inputs;
    at::RecordFunction record;  // refers to the other members

    Shown(at::StepCallbacks&& profilers, std::string name_of_call, const std::vector<Tensor>& tensors)
        : name(std::move(name_of_call)), record(std::move(profilers)) {
      for (const Tensor& t : tensors) inputs.push_back(t.defined() ? c10::IValue(t) : c10::IValue());
      record.before(name.c_str(), &inputs, at::sequence_number::peek());
    }
  };

  std::unique_ptr<Shown> shown_;
};

}  // namespace fastrnn
