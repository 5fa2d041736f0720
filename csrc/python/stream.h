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

// Every call locks a mutex, so threads take turns. A call never acquires the Python GIL while it holds the mutex, and a
// thread that holds the GIL must not wait for it.
class Stream {
 public:
  // weights: w_ih, w_hh, b_ih, b_hh and w_hr of each layer, undefined if absent; dense and not shared. w_ih and w_hh
  // may be in bfloat16 or int8 while the others are float32; then the scales of their rows follow (undefined for
  // bfloat16).
  Stream(const std::string& cell, std::vector<Tensors> weights, int64_t batch);

  void set_weights(std::vector<Tensors> weights);
  // Copies of the current states, each (L, B, P or H)
  Tensors states() const;
  void set_states(const Tensors& values);
  // Sets the given rows, or all, to `initial`, or to zeros if it is empty.
  void reset(const std::optional<std::vector<int64_t>>& rows, const Tensors& initial);
  // x (B, I), dense. Returns y (B, P), new.
  Tensor step(const Tensor& x);
  // The same, or an undefined tensor if another thread is running a step
  Tensor step_without_waiting(const Tensor& x);
  bool fits(const Tensor& x) const;
  // True if a step is so short that it need not release the GIL
  bool brief() const { return brief_; }

 private:
  Tensor step_locked(const Tensor& x);
  // Computes W·x of a layer and, with `ahead`, R·h + b_hh.
  void multiply(const Tensors& layer, const Tensor& x, const Tensor& h, bool ahead);
  // Raises unless these are weights for every layer, of the same sizes and dtype as the present ones.
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

// A dense copy outside of autograd, transforms and modes; undefined if `t` is wrapped by one of them
Tensor plain_copy(const Tensor& t);

// A capsule of this name holds a std::shared_ptr<Stream>.
constexpr const char* kStreamHandle = "fastrnn.stream";

// stream_step(handle, x) -> y, or None if x is not an ordinary tensor that fits; without pybind11 to save time
PyMethodDef* stream_methods();

}  // namespace fastrnn
