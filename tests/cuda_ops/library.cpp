// torch.ops.fastrnn_emulated: the operators of csrc/ops/cuda for tensors on the CPU, and settings for the tests.
#include <torch/library.h>

#include "launcher.h"
#include "ops/cuda/choice.h"
#include "ops/cuda/device.h"
#include "ops/cuda/machine.h"
#include "ops/operators.h"

namespace fastrnn::cuda {
namespace {

void name_driver(c10::string_view name) { set_driver(std::string(name)); }

void limit(int64_t processors, int64_t shared_bytes, int64_t largest_cluster) {
  limit_machine(static_cast<int>(processors), shared_bytes, static_cast<int>(largest_cluster));
  forget_choices();
}

void slice(int64_t units, int64_t rows) { set_slices(static_cast<int>(units), static_cast<int>(rows)); }
void refuse(bool on) { set_refusing(on); }
void poison(bool on) { set_poison(on); }
void load_own(c10::string_view path, int64_t capability) {
  const std::string problem = load_cell(std::string(path).c_str(), static_cast<int>(capability));
  TORCH_CHECK(problem.empty(), problem);
}
// The dtypes for which a cell has kernels, as a bit mask.
int64_t formats(c10::string_view name, int64_t capability) {
  const CellKernels* cell = find_cell(std::string(name).c_str(), static_cast<int>(capability));
  int64_t found = 0;
  for (int k = 0; cell != nullptr && k < kFormats; ++k) found |= static_cast<int64_t>(cell->formats[k] != nullptr) << k;
  return found;
}
void seed(int64_t value) { emulator::settings().seed = static_cast<uint64_t>(value); }

std::vector<int64_t> counted() {
  const auto found = runs();
  return {found.begin(), found.end()};
}

// torch has it for GPUs alone.
Tensor& multiply_wide(const Tensor& a, const Tensor& b, at::ScalarType type, Tensor& out) {
  return out.copy_(at::mm(a.to(type), b.to(type)));
}

}  // namespace
}  // namespace fastrnn::cuda

TORCH_LIBRARY(fastrnn_emulated, m) {
  m.def(fastrnn::kForwardSchema, &fastrnn::sequence_forward<fastrnn::cuda::Cuda>);
  m.def(fastrnn::kBackwardSchema, &fastrnn::layer_backward<fastrnn::cuda::Cuda>);
  m.def("set_driver", &fastrnn::cuda::name_driver);
  m.def("set_slices", &fastrnn::cuda::slice);
  m.def("limit_machine", &fastrnn::cuda::limit);
  m.def("set_refusing", &fastrnn::cuda::refuse);
  m.def("set_poison", &fastrnn::cuda::poison);
  m.def("set_seed", &fastrnn::cuda::seed);
  m.def("load_cell", &fastrnn::cuda::load_own);
  m.def("formats", &fastrnn::cuda::formats);
  m.def("runs", &fastrnn::cuda::counted);
}

TORCH_LIBRARY_IMPL(aten, CPU, m) { m.impl("mm.dtype_out", &fastrnn::cuda::multiply_wide); }
