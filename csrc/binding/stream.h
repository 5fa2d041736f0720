// Single steps of a network that keeps its own copy of weights and its own state.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "binding/ops.h"

namespace fastrnn {

class Stream {
 public:
  // weights: of each layer w_ih, w_hh, b_ih, b_hh, w_hr, undefined where there is none; dense, and nobody else's.
  Stream(const std::string& cell, std::vector<Tensors> weights, int64_t batch);

  void set_weights(std::vector<Tensors> weights);
  // The state now, each (L, B, P or H): the memory itself.
  const Tensors& states() const { return states_[now_]; }
  // x (B, I), dense. Returns y (B, P), new.
  Tensor step(const Tensor& x);
  bool fits(const Tensor& x) const;

 private:
  std::string cell_;
  int64_t batch_, hidden_, projected_;
  std::vector<Tensors> weights_;
  Tensors states_[2];                 // in turns: before and after a step
  std::vector<Tensors> by_layer_[2];  // the same memory, [layer][state] (B, P or H)
  Tensor gates_, product_;            // (B, G·H)
  std::vector<Tensor> between_;       // y of all layers but the last
  std::vector<int64_t> counts_, offsets_{0};
  int now_ = 0;
};

// A capsule of this name holds a std::shared_ptr<Stream>.
constexpr const char* kStreamHandle = "fastrnn.stream";

// stream_step(handle, x) -> y, or None if x is no plain tensor that fits: without pybind11, for its price.
PyMethodDef* stream_methods();

}  // namespace fastrnn
