// The operators behind torch.ops.fastrnn, on a GPU. Their schemas, and what they return, are in csrc/binding/ops.cpp.
#pragma once

#include <array>
#include <tuple>

#include "binding/states.h"
#include "cuda_binding/memory.h"

namespace fastrnn::cuda {

std::tuple<Tensor, Tensors, Tensors> sequence_forward(c10::string_view cell, const Tensor& x,
                                                      const OptionalTensor& w_ih, const Tensor& w_hh,
                                                      const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                                      const OptionalTensor& w_hr, OptionalTensors initial,
                                                      const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                                      const OptionalTensor& reset, bool reverse, bool training);

std::tuple<Tensor, Tensor, Tensors, Tensor> sequence_backward(
    c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
    const Tensor& w_hh, const OptionalTensor& w_hr, OptionalTensors initial, const Tensor& y, at::TensorList reserve,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset, bool reverse,
    bool want_initial, bool want_dh);

Tensors layer_backward(c10::string_view cell, const OptionalTensor& grad_y, const c10::List<OptionalTensor>& grad_final,
                       const Tensor& x, const OptionalTensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
                       OptionalTensors initial, const Tensor& y, at::TensorList reserve,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
                       bool reverse, std::array<bool, 7> needs);

Tensors layer_backward_flow(c10::string_view cell, const OptionalTensor& grad_y,
                            const c10::List<OptionalTensor>& grad_final, const Tensor& x, const OptionalTensor& w_ih,
                            const Tensor& w_hh, const OptionalTensor& w_hr, OptionalTensors initial, const Tensor& y,
                            at::TensorList reserve, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                            const OptionalTensor& reset, bool reverse, std::array<bool, 7> needs);

}  // namespace fastrnn::cuda
