#include "ops/cuda/device.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/layout.h"
#include "ops/cuda/choice.h"
#include "ops/cuda/errors.h"
#include "ops/cuda/machine.h"
#include "ops/cuda/stepwise.h"

namespace fastrnn::cuda {

namespace {

// Torch's setting for cuBLAS products. (Its older query, allowTF32CuBLAS, raises if a program has used the newer
// setting.)
bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

Preparation preparation;

template <class Pass, class Args>
void describe(const Checked<Cuda>& c, const Pass& pass, Args& args) {
  fill(c, pass, args);
  args.rows = c.layout.describe(c.reverse);
  args.hidden = c.hidden;
  args.projected = c.projected;
}

}  // namespace

void set_preparation(Preparation function) { preparation = std::move(function); }

const CellKernels* cell_named(const std::string& name, at::ScalarType type, const at::Device& device) {
  const Format format = format_of(type, device);
  const int capability = machine(device.index()).capability();
  const CellKernels* cell = find_cell(name.c_str(), capability);
  if (kernels_of(cell, format) != nullptr) return cell;
  const std::string problem = preparation ? preparation(name, c10::toString(type), device.str()) : std::string();
  cell = find_cell(name.c_str(), capability);
  TORCH_CHECK_VALUE(cell != nullptr || !problem.empty(), unknown_cell(name, &cell_name));
  TORCH_CHECK(kernels_of(cell, format) != nullptr, "cell: expected kernels of ", name, " for ", type, " on ", device,
              ", got none", problem.empty() ? "" : (": " + problem).c_str());
  return cell;
}

Format format_of(at::ScalarType type, const at::Device& device) {
  const auto format = storage_format<Format>(type);
  const bool tf32 = format == Format::kFloat32 && tf32_allowed() && machine(device.index()).major >= 8;
  return tf32 ? Format::kTf32 : format;
}

const FormatKernels* kernels_of(const CellKernels* cell, Format format) {
  return cell == nullptr ? nullptr : cell->formats[static_cast<int>(format)];
}

at::Device Cuda::of(const LayerCall& call, const Tensor& rows_like) {
  const Tensor& w_hh = call.w_hh();
  TORCH_CHECK(on_gpu(w_hh), "w_hh: expected a dense tensor on ",
              on_gpu(rows_like) ? rows_like.device() : at::Device(at::kCUDA), ", got ", w_hh.layout(), " on ",
              w_hh.device());
  const std::string problem = device_problem(w_hh.device().index());
  TORCH_CHECK(problem.empty(), "fastrnn: ", problem);
  return w_hh.device();
}

Tensor Cuda::Memory::saved(const CudaLayout& layout, int64_t width, const at::TensorOptions& options) {
  return layout.lengths.defined() ? at::zeros({layout.rows, width}, options) : fresh({layout.rows, width}, options);
}

void Cuda::run(const Checked<Cuda>& c, const ForwardPass& pass, Memory&) {
  ForwardArgs args{};
  describe(c, pass, args);
  if (!run_persistent(c, args, c.kernels->forward, false)) run_stepwise(c, args, pass.w_hh, optional(pass.w_hr));
}

void Cuda::run(const Checked<Cuda>& c, BackwardPass& pass, Memory&) {
  BackwardArgs args{};
  describe(c, pass, args);
  args.projection = c.projection;
  args.own_restart = !pass.grad_restart.empty();
  Tensors restarts;
  for (size_t s = 0; s < pass.grad_states.size() && c.layout.reset.defined(); ++s) {
    restarts.push_back(at::zeros(pass.grad_states[s].sizes(), c.options.dtype(c.compute_type())));
    args.restarts[s] = writable(restarts[s]);
  }
  if (!run_persistent(c, args, c.kernels->backward, true)) run_stepwise(c, args, pass.w_hh, optional(pass.w_hr));
  for (size_t s = 0; s < pass.grad_restart.size(); ++s) pass.grad_restart[s].copy_(restarts[s]);
}

Tensor Cuda::parameter_gradients(const Checked<Cuda>& c, Memory& memory) {
  return memory.empty({c.layout.rows, c.cell->parameters * c.hidden}, c.options);
}

Tensor Cuda::hidden_before(const Checked<Cuda>& c, const BackwardPass& pass) {
  Tensor out = fresh(pass.y.sizes(), c.options);
  if (out.numel() == 0) return out;
  const auto first = [](const Tensors& states) { return states.empty() ? nullptr : data_of(states[0]); };
  const Tensors& restart = pass.restart.empty() ? pass.states : pass.restart;
  check(cuda::hidden_before(c.layout.describe(c.reverse), data_of(pass.y), first(pass.states), first(restart),
                            writable(out), c.projected, static_cast<int>(out.itemsize()),
                            c10::cuda::getCurrentCUDAStream(c.device.index()).stream()),
        "the gradient of w_hh");
  return out;
}

Tensor Cuda::unprojected(const Checked<Cuda>& c, const BackwardPass& pass) {
  return pass.saved[3].view({-1, c.hidden});
}

}  // namespace fastrnn::cuda
