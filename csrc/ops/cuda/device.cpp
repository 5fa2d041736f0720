#include "ops/cuda/device.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/layout.h"
#include "cuda_binding/choice.h"
#include "cuda_binding/errors.h"
#include "cuda_binding/machine.h"
#include "cuda_binding/stepwise.h"

namespace fastrnn::cuda {

namespace {

// As torch decides it for the products of cuBLAS. (Its older question, allowTF32CuBLAS, raises where a program has used
// the newer setting.)
bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

Preparation preparation;

// What both passes tell a driver.
template <class Pass, class Args>
void set_common(const Checked<Cuda>& c, const Pass& pass, Args& args) {
  args.rows = c.layout.describe(c.reverse);
  args.hidden = c.hidden;
  args.projected = c.projected;
  args.w_hh = data_of(pass.w_hh);
  args.parameters = c.parameters_of(pass.w_hh);
  for (size_t s = 0; s < pass.states.size(); ++s) args.initial[s] = args.restart[s] = data_of(pass.states[s]);
  for (size_t s = 0; s < pass.restart.size(); ++s) args.restart[s] = data_of(pass.restart[s]);
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
  switch (type) {
    case at::kFloat:
      return tf32_allowed() && machine(device.index()).major >= 8 ? Format::kTf32 : Format::kFloat32;
    case at::kDouble:
      return Format::kFloat64;
    case at::kBFloat16:
      return Format::kBFloat16;
    case at::kHalf:
      return Format::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, "input: expected float32, float64, bfloat16 or float16, got ", type);
  }
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
  set_common(c, pass, args);
  args.b_hh = data_of(pass.b_hh);
  args.gates = writable(pass.gates);
  args.extra = writable(pass.extra);
  args.cells = writable(pass.cells);
  args.unprojected = writable(pass.unprojected);
  args.y = writable(pass.y);
  args.training = pass.training;
  for (size_t s = 0; s < pass.finals.size(); ++s) args.final_states[s] = writable(pass.finals[s]);
  if (!run_persistent(c, args, c.kernels->forward, false)) run_stepwise(c, args, pass.w_hh, optional(pass.w_hr));
}

void Cuda::run(const Checked<Cuda>& c, BackwardPass& pass, Memory&) {
  BackwardArgs args{};
  set_common(c, pass, args);
  args.gates = data_of(pass.saved[0]);
  args.extra = data_of(pass.saved[1]);
  args.cells = data_of(pass.saved[2]);
  args.unprojected = data_of(pass.saved[3]);
  args.y = data_of(pass.y);
  args.grad_y = data_of(pass.grad_y);
  args.da = writable(pass.da);
  args.drh = writable(pass.drh);
  args.dparameters = writable(pass.dparameters);
  args.dh = writable(pass.dh);
  args.clip = c.clip;
  args.projection = c.projection;
  args.own_restart = !pass.grad_restart.empty();
  Tensors restarts;
  for (size_t s = 0; s < pass.grad_finals.size(); ++s) {
    args.grad_final[s] = data_of(pass.grad_finals[s]);
    if (!pass.later.empty()) args.later[s] = writable(pass.later[s]);
    if (pass.grad_states.empty()) continue;
    args.grad_initial[s] = writable(pass.grad_states[s]);
    if (!c.layout.reset.defined()) continue;
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
