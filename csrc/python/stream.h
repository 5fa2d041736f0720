// Single steps of a network that keeps its own copy of weights and its own state.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cpu/args.h"
#include "ops/call.h"

namespace fastrnn {

// Threads take turns: every call locks. None of them takes Python's lock meanwhile; who has it must not wait here.
class Stream {
 public:
  // weights: of each layer w_ih, w_hh, b_ih, b_hh, w_hr, undefined where there is none; dense, and nobody else's. w_ih
  // and w_hh may be narrow, in bfloat16 or int8, where the others are float32; then the scales of their rows follow
  // (undefined for bfloat16).
  Stream(const std::string& cell, std::vector<Tensors> weights, int64_t batch);

  void set_weights(std::vector<Tensors> weights);
  // The state now, each (L, B, P or H): copies.
  Tensors states() const;
  void set_states(const Tensors& values);
  // The rows (all, if not said) back to `initial`, or to zeros if that is empty.
  void reset(const std::optional<std::vector<int64_t>>& rows, const Tensors& initial);
  // x (B, I), dense. Returns y (B, P), new.
  Tensor step(const Tensor& x);
  // The same, unless another thread is at it: then undefined.
  Tensor step_without_waiting(const Tensor& x);
  bool fits(const Tensor& x) const;
  // Whether a step is so short that other threads may wait for it.
  bool brief() const { return brief_; }

 private:
  Tensor step_locked(const Tensor& x);
  // W·x of a layer and, if it is made ahead of the cell, R·h + b_hh.
  void multiply(const Tensors& layer, const Tensor& x, const Tensor& h, bool ahead);
  // Raises unless these are the weights of every layer, in the sizes and dtype of those of before.
  void check_weights(const CellKernels& cell, const std::vector<Tensors>& weights) const;

  mutable std::mutex mutex_;
  std::string cell_;
  int64_t batch_, inputs_ = 0, hidden_ = 0, projected_ = 0;
  at::ScalarType type_{};
  bool brief_ = false, narrow_ = false;
  std::vector<Tensors> weights_;
  Tensors states_[2];                 // in turns: before and after a step
  std::vector<Tensors> by_layer_[2];  // the same memory, [layer][state] (B, P or H)
  Tensor gates_, product_;            // (B, G·H)
  std::vector<Tensor> between_;       // y of all layers but the last
  std::vector<int64_t> counts_, offsets_{0};
  int now_ = 0;
};

// A dense copy that no mode, transform or derivative knows of; undefined where `t` is wrapped by one of them.
Tensor plain_copy(const Tensor& t);

// A capsule of this name holds a std::shared_ptr<Stream>.
constexpr const char* kStreamHandle = "fastrnn.stream";

// stream_step(handle, x) -> y, or None if x is no plain tensor that fits: without pybind11, for its price.
PyMethodDef* stream_methods();

}  // namespace fastrnn
