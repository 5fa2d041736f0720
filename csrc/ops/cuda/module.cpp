// fastrnn._cuda: registration of the operators for CUDA. Importing it does not initialise a GPU.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <map>
#include <string>
#include <vector>

#include "cuda/layout.h"
#include "ops/cuda/choice.h"
#include "ops/cuda/device.h"
#include "ops/cuda/machine.h"
#include "ops/operators.h"

namespace py = pybind11;

namespace fastrnn::cuda {
namespace {

at::ScalarType type_named(const std::string& name) {
  static const std::map<std::string, at::ScalarType> types = {
      {"float32", at::kFloat}, {"float64", at::kDouble}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};
  const auto found = types.find(name);
  if (found == types.end()) {
    throw py::value_error("dtype: expected float32, float64, bfloat16 or float16, got " + name);
  }
  return found->second;
}

const char* format_name(Format format) {
  static constexpr const char* names[kFormats] = {"float32", "float64", "bfloat16", "float16", "tf32"};
  return names[static_cast<int>(format)];
}

Driver driver_or_raise(const std::string& name) {
  Driver driver = Driver::kAuto;
  if (!driver_named(name, &driver)) {
    throw py::value_error("driver: expected auto, stepwise, grid or cluster, got " + name);
  }
  return driver;
}

void choose_driver(const std::string& name) { set_driver(driver_name(driver_or_raise(name))); }

py::dict explain(int device, const std::string& cell_name, int64_t steps, int64_t batch, int64_t hidden,
                 const std::string& dtype, bool projection, bool backward, const std::string& driver) {
  const at::Device where(at::kCUDA, static_cast<c10::DeviceIndex>(device));
  const c10::cuda::CUDAGuard guard(where);
  const CellKernels* cell = cell_named(cell_name, type_named(dtype), where);
  const Format format = format_of(type_named(dtype), where);
  const FormatKernels& kernels = *kernels_of(cell, format);
  const Problem problem{steps, batch, hidden, cell->recurrent, cell->second, cell->states, projection, backward};
  const Driver wanted = driver_or_raise(driver);
  const Choice choice = backward ? choice_of(kernels.backward, problem, where, wanted)
                                 : choice_of(kernels.forward, problem, where, wanted);
  py::dict out;
  out["driver"] = driver_name(choice.driver);
  out["possible"] = choice.possible;
  out["reason"] = choice.reason;
  out["format"] = format_name(format);
  const bool persistent = choice.possible && choice.driver != Driver::kStepwise;
  out["unit_slices"] = persistent ? choice.tiling.unit_slices : 0;
  out["row_slices"] = persistent ? choice.tiling.row_slices : 0;
  out["units"] = persistent ? choice.tiling.units : 0;
  out["rows"] = persistent ? choice.tiling.rows : 0;
  out["shared_bytes"] = persistent ? choice.tiling.shared_bytes : 0;
  return out;
}

// Return true if a cell has kernels of a format on a GPU.
bool has_kernels(const std::string& name, const std::string& dtype, int device) {
  const at::Device where(at::kCUDA, static_cast<c10::DeviceIndex>(device));
  const CellKernels* cell = find_cell(name.c_str(), machine(where.index()).capability());
  return kernels_of(cell, format_of(type_named(dtype), where)) != nullptr;
}

void load_cell_from(const std::string& path, int capability) {
  const std::string problem = load_cell(path.c_str(), capability);
  if (!problem.empty()) throw py::import_error(path + ": " + problem);
}

std::map<std::string, int64_t> counted_runs() {
  const std::array<int64_t, 4> found = runs();
  std::map<std::string, int64_t> out;
  for (const Driver driver : {Driver::kStepwise, Driver::kGrid, Driver::kCluster}) {
    out[driver_name(driver)] = found[static_cast<size_t>(driver)];
  }
  return out;
}

std::map<std::string, int64_t> machine_of(int device) {
  const Machine m = machine(static_cast<c10::DeviceIndex>(device));
  return {{"processors", m.processors},
          {"shared_bytes", m.shared_bytes},
          {"major", m.major},
          {"minor", m.minor},
          {"largest_cluster", m.largest_cluster}};
}

void limit(int processors, int64_t shared_bytes, int largest_cluster) {
  limit_machine(processors, shared_bytes, largest_cluster);
  forget_choices();
}

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info;
  info["architectures"] = architectures();
  info["toolkit"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["torch_version"] = TORCH_VERSION;
  info["python_version"] = PY_VERSION;
  std::string names;
  for (int k = 0; cell_name(k) != nullptr; ++k) names += std::string(names.empty() ? "" : ", ") + cell_name(k);
  info["cells"] = names;
  return info;
}

// Custom cells are compiled from Python.
void use_preparation(const py::function& function) {
  const auto* held = new py::function(function);  // never destroyed: at exit the interpreter may be gone
  set_preparation([held](const std::string& cell, const std::string& type, const std::string& device) {
    const py::gil_scoped_acquire gil;
    return (*held)(cell, type, device).cast<std::string>();
  });
}

}  // namespace
}  // namespace fastrnn::cuda

TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) { fastrnn::register_operators<fastrnn::cuda::Cuda>(m); }

PYBIND11_MODULE(_cuda, m) {
  using namespace fastrnn::cuda;
  m.doc() = "fastrnn's kernels for GPUs. Importing it registers torch.ops.fastrnn for CUDA.";
  m.def("set_driver", &choose_driver, py::arg("name"), "auto, stepwise, grid or cluster, for all threads.");
  m.def("set_slices", &set_slices, py::arg("units"), py::arg("rows"),
        "Into how many slices persistent drivers cut units and rows, 0 for the rule's choice (measurements, tests).");
  m.def("driver", [] { return std::string(driver_name(wanted_driver())); });
  m.def(
      "device_problem", [](int device) { return device_problem(static_cast<c10::DeviceIndex>(device)); },
      py::arg("device"), "Why the kernels cannot run on a GPU, or an empty string.");
  m.def("explain", &explain, py::arg("device"), py::arg("cell"), py::arg("steps"), py::arg("batch"), py::arg("hidden"),
        py::arg("dtype"), py::arg("projection"), py::arg("backward"), py::arg("driver"));
  m.def("has_kernels", &has_kernels, py::arg("cell"), py::arg("dtype"), py::arg("device"));
  m.def("load_cell", &load_cell_from, py::arg("path"), py::arg("capability"),
        "Adds the kernels of a user's cell, for GPUs of that capability (80, 90).");
  m.def("use_preparation", &use_preparation, py::arg("function"),
        "(cell, dtype, device): makes the kernels of a custom cell; returns why there are none, or an empty string.");
  m.def("machine", &machine_of, py::arg("device"));
  m.def("limit_machine", &limit, py::arg("processors"), py::arg("shared_bytes"), py::arg("largest_cluster"),
        "Let every GPU seem this small, 0 for what it is (tests).");
  m.def("set_refusing", &set_refusing, py::arg("on"), "Launches of persistent drivers are refused (tests).");
  m.def("set_poison", &set_poison, py::arg("on"), "Fill the kernels' memory with NaN first (tests).");
  m.def("runs", &counted_runs, "How many sequences ran by each driver.");
  m.def("build_info", &build_info);
}
