#include "cuda_binding/call.h"

#include <ATen/Context.h>

#include "binding/cell_name.h"
#include "cuda_binding/machine.h"

namespace fastrnn::cuda {

namespace {

// As torch decides it for the products of cuBLAS. (Its older question, allowTF32CuBLAS, raises where a program has used
// the newer setting.)
bool tf32_allowed() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

Preparation preparation;

at::Device gpu_of(const Tensor& w_hh, const Tensor& rows_like) {
  TORCH_CHECK(on_gpu(w_hh), "w_hh: expected a dense tensor on ",
              on_gpu(rows_like) ? rows_like.device() : at::Device(at::kCUDA), ", got ", w_hh.layout(), " on ",
              w_hh.device());
  const std::string problem = device_problem(w_hh.device().index());
  TORCH_CHECK(problem.empty(), "fastrnn: ", problem);
  return w_hh.device();
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

Call::Call(c10::string_view name, const Tensor& rows_like, const Tensor& w_hh, const OptionalTensor& w_hr,
           const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset)
    : device(gpu_of(w_hh, rows_like)),
      cell(cell_named(without_bound(name), w_hh.scalar_type(), device)),
      clip(bound_of(name)),
      layout(rows_like, device, batch_sizes, lengths, reset),
      options(w_hh.options().requires_grad(false)) {
  const std::string rows =
      std::to_string(cell->recurrent) + "·H" + (cell->parameters > 0 ? " + " + std::to_string(cell->parameters) : "");
  TORCH_CHECK(w_hh.dim() == 2, "w_hh: expected shape [", rows, ", P], got ", w_hh.sizes());
  TORCH_CHECK_VALUE(!w_hr || projectable(*cell), "w_hr: the cell ", name, " cannot be used with a projection");
  projected = w_hh.size(1);
  projection = w_hr.has_value();
  hidden = hidden_units(*cell, w_hh.size(0), projected);
  TORCH_CHECK(w_hh.size(0) == recurrent_width() + cell->parameters, "w_hh: expected shape [", rows, ", P], got ",
              w_hh.sizes());
  kernels = kernels_of(cell, format_of(w_hh.scalar_type(), device));
  TORCH_CHECK(kernels != nullptr, "cell: the kernels of ", name, " are not compiled for ", w_hh.scalar_type());
  TORCH_CHECK(hidden > 0 && hidden < kTooManyUnits && projected > 0,
              "w_hh: expected at least one hidden unit, less than ", kTooManyUnits,
              ", and an h of at least one, got shape ", w_hh.sizes());
  check(w_hh, {recurrent_width() + cell->parameters, projected}, "w_hh");
  if (w_hr) {
    check(*w_hr, {projected, hidden}, "w_hr");
  } else {
    TORCH_CHECK(projected == hidden, "w_hh: expected shape ", at::IntArrayRef{w_hh.size(0), hidden}, ", got ",
                w_hh.sizes());
  }
}

const void* Call::parameters_of(const Tensor& w_hh) const {
  return static_cast<const char*>(data_of(w_hh)) +
         recurrent_width() * projected * static_cast<int64_t>(w_hh.itemsize());
}

OptionalTensor Call::second_matrix(const Tensor& w_hh, const OptionalTensor& w_hr) const {
  return cell->second > 0 ? OptionalTensor(second_product(w_hh)) : w_hr;
}

at::ScalarType Call::compute_type() const {
  return c10::typeMetaToScalarType(options.dtype()) == at::kDouble ? at::kDouble : at::kFloat;
}

void Call::check(const Tensor& t, at::IntArrayRef sizes, const char* name) const {
  TORCH_CHECK(t.device() == device && t.layout() == at::kStrided, name, ": expected a dense tensor on ", device,
              ", got ", t.layout(), " on ", t.device());
  TORCH_CHECK(t.scalar_type() == c10::typeMetaToScalarType(options.dtype()), name, ": expected dtype ",
              c10::typeMetaToScalarType(options.dtype()), ", got ", t.scalar_type());
  TORCH_CHECK(t.sizes() == sizes, name, ": expected shape ", sizes, ", got ", t.sizes());
}

void Call::check_states(at::TensorList states, const char* name) const {
  if (states.empty()) return;
  TORCH_CHECK(static_cast<int>(states.size()) == cell->states, name, ": expected ", cell->states, " tensors, got ",
              states.size());
  for (int s = 0; s < cell->states; ++s) check(states[s], {layout.batch, width(s)}, name);
}

}  // namespace fastrnn::cuda
