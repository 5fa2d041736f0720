// Module functions that are not operators: build information, instruction set, switches for tests and experiments.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/contention.h"
#include "cpu/dispatch.h"
#include "cpu/team.h"
#include "cpu/workspace.h"
#include "ops/cpu/buffers.h"
#include "ops/cpu/device.h"
#include "ops/finite.h"
#include "python/eager.h"
#include "python/fast_path.h"
#include "python/range.h"
#include "python/stream.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

#define FASTRNN_TEXT_(x) #x
#define FASTRNN_TEXT(x) FASTRNN_TEXT_(x)

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (int k = 0; k < capability_count(); ++k) {
    if (capability_supported(k)) names.emplace_back(capability_name(k));
  }
  return names;
}

std::vector<std::string> cells() {
  std::vector<std::string> names;
  for (int k = 0; cell_name(k) != nullptr; ++k) names.emplace_back(cell_name(k));
  return names;
}

py::dict cell_traits(const std::string& name) {
  const CellKernels* cell = find_cell(name.c_str());
  if (cell == nullptr) throw py::value_error(unknown_cell(name, &cell_name));
  py::dict traits;
  traits["gates"] = cell->gates;
  traits["states"] = cell->states;
  traits["values"] = cell->saved;
  traits["split_from"] = cell->split_from;
  traits["recurrent"] = cell->recurrent;
  traits["second"] = cell->second;
  traits["parameters"] = cell->parameters;
  traits["totals"] = cell->totals;
  traits["projectable"] = projectable(*cell);
  for (const bool projection : {false, true}) {
    py::list saved;
    for (const SavedTensor& t : saved_tensors(*cell, projection)) {
      saved.append(py::make_tuple(t.per_unit, t.constant, t.compute));
    }
    traits[projection ? "saved_with_projection" : "saved"] = py::tuple(saved);
  }
  return traits;
}

// Return true if a cell has kernels of a dtype for the current instruction set.
bool has_kernels(const std::string& name, at::ScalarType type) {
  const CellKernels* cell = find_cell(name.c_str());
  return cell != nullptr && cell->forward[static_cast<int>(storage_format<Format>(type))] != nullptr;
}

void load_cells_from(const std::string& path) {
  const std::string problem = load_cells(path.c_str());
  if (!problem.empty()) throw py::import_error(path + ": " + problem);
}

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["torch_version"] = TORCH_VERSION;
  info["python_version"] = PY_VERSION;
#ifdef _OPENMP
  info["openmp"] = FASTRNN_TEXT(_OPENMP);
#else
  info["openmp"] = "no";
#endif
  std::string names;
  for (const std::string& name : cells()) names += (names.empty() ? "" : ", ") + name;
  info["cells"] = names;
  return info;
}

// Writes one byte past scratch memory and one past an output, with poison on; returns true if both are detected.
bool guards_work() {
  const bool before = poison();
  set_poison(true);
  Workspace workspace;
  const size_t block = workspace.add(3, 1);
  bool noticed = workspace.allocate() && workspace.intact();
  workspace.at<char>(block)[3] = 0;
  noticed = noticed && !workspace.intact();
  Buffers buffers;
  const at::Tensor output = buffers.empty({3}, at::TensorOptions().dtype(at::kByte));
  buffers.verify(0);
  static_cast<char*>(output.data_ptr())[3] = 0;
  try {
    buffers.verify(0);
    noticed = false;
  } catch (const c10::Error&) {
  }
  set_poison(before);
  return noticed;
}

void choose_capability(const std::string& name) {
  if (set_capability(name.c_str())) return;
  std::string known;
  for (const std::string& n : capabilities()) known += (known.empty() ? "" : ", ") + n;
  throw py::value_error("capability: expected one of " + known + ", got " + name);
}

void choose_split(const std::string& name) {
  static const std::map<std::string, Split> names = {
      {"auto", Split::kAuto}, {"none", Split::kNone}, {"rows", Split::kRows}, {"units", Split::kUnits}};
  const auto found = names.find(name);
  if (found == names.end()) throw py::value_error("split: expected auto, none, rows or units, got " + name);
  set_split(found->second);
}

// A call in Python's flat caller (fastrnn/_call.py): cell, reverse, clip, number of initial states, batch_sizes,
// lengths, reset, and the inputs.
constexpr size_t kSettings = 4;

LayerCall call_of(const py::tuple& flat) {
  const auto tensor = [&](size_t k) { return flat[k].cast<OptionalTensor>(); };
  LayerCall call;
  try {
    call.cell = flat[0].cast<std::string>();
    call.reverse = flat[1].cast<bool>();
    call.clip = flat[2].cast<double>();
    call.batch_sizes = tensor(kSettings);
    call.lengths = tensor(kSettings + 1);
    call.reset = tensor(kSettings + 2);
    for (size_t k = kSettings + 3; k < flat.size(); ++k) call.inputs.push_back(tensor(k).value_or(Tensor()));
    call.restarts = call.inputs.size() - kFixedInputs - flat[3].cast<size_t>();
  } catch (const py::cast_error&) {
    throw py::type_error("layer: expected tensors");
  }
  for (size_t k = 0; k < call.inputs.size(); ++k) {
    if ((k == kX || k == kWHh || k >= kFixedInputs) && !call.inputs[k].defined()) {
      throw py::type_error("layer: expected a tensor, got None");
    }
  }
  return call;
}

py::object or_none(const Tensor& t) { return t.defined() ? py::cast(t) : py::none(); }

py::tuple flat_of(const LayerCall& call) {
  py::tuple flat(kSettings + 3 + call.inputs.size());
  size_t k = 0;
  flat[k++] = call.cell;
  flat[k++] = call.reverse;
  flat[k++] = call.clip;
  flat[k++] = call.states().size();
  for (const OptionalTensor& t : {call.batch_sizes, call.lengths, call.reset})
    flat[k++] = or_none(t.value_or(Tensor()));
  for (const Tensor& t : call.inputs) flat[k++] = or_none(t);
  return flat;
}

// Runs one layer directly; returns None if the dispatcher must see the operators (see is_plain).
std::optional<Tensors> layer(const py::tuple& flat) {
  EagerCall call{call_of(flat), {}};
  if (!is_plain(call)) return std::nullopt;
  const py::gil_scoped_release no_gil;
  const Range range(call.cell, "", [&] { return call.inputs; });
  return run_layer(std::move(call));
}

bool is_finite_matrix(const Tensor& t) {
  constexpr c10::DispatchKeySet kUsual({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                        c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU});
  const bool ordinary = (t.key_set().raw_repr() & ~kUsual.raw_repr()) == 0 && t.dim() == 2 && t.is_floating_point() &&
                        (t.stride(1) == 1 || t.size(1) == 1);
  return ordinary && all_finite(t);
}

using Layers = std::vector<std::vector<OptionalTensor>>;

std::vector<Tensors> tensors_of(const Layers& layers) {
  std::vector<Tensors> out;
  for (const auto& layer : layers) {
    Tensors& tensors = out.emplace_back();
    for (const OptionalTensor& t : layer) tensors.push_back(t.value_or(Tensor()));
  }
  return out;
}

// Backward of backward is computed in plain PyTorch, in Python.
void use_higher_order(const py::function& function) {
  // Never destroyed: at exit the interpreter may be gone.
  const auto* held = new py::function(function);
  set_higher_order([held](const LayerCall& call, const Wanted& wanted, const Tensors& grads, const Tensors& results) {
    const py::gil_scoped_acquire gil;
    const auto list = [](const Tensors& tensors) {
      py::list out;
      for (const Tensor& t : tensors) out.append(or_none(t));
      return out;
    };
    const auto found = (*held)(flat_of(call), py::tuple(py::cast(wanted)), list(grads), list(results));
    Tensors out;
    for (const OptionalTensor& t : found.cast<std::vector<OptionalTensor>>()) out.push_back(t.value_or(Tensor()));
    return out;
  });
}

// Custom cells are compiled from Python.
void use_preparation(const py::function& function) {
  const auto* held = new py::function(function);  // never destroyed, as above
  set_preparation([held](const std::string& cell, const std::string& type, const std::string& device) {
    const py::gil_scoped_acquire gil;
    return (*held)(cell, type, device).cast<std::string>();
  });
}

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastrnn's compiled part. Importing it registers torch.ops.fastrnn.";
  m.def("capability", [] { return std::string(fastrnn::capability()); }, "The instruction set in use.");
  m.def(
      "capability_problem", [] { return std::string(fastrnn::capability_problem()); },
      "What was wrong with FASTRNN_CPU_CAPABILITY, or an empty string.");
  m.def("capabilities", &fastrnn::capabilities, "The instruction sets this machine can run, the best last.");
  m.def("set_capability", &fastrnn::choose_capability, py::arg("name"));
  m.def("set_split", &fastrnn::choose_split, py::arg("name"),
        "How a step's work is shared: auto, none, rows or units.");
  m.def("set_batch_invariant", &fastrnn::products::set_batch_invariant, py::arg("on"));
  m.def("set_poison", &fastrnn::set_poison, py::arg("on"),
        "Fill scratch and output memory with NaN and check sentinels behind it (tests).");
  m.def(
      "set_patience", [](double seconds) { fastrnn::set_patience(static_cast<int64_t>(seconds * 1e9)); },
      py::arg("seconds"),
      "How long a thread waits for another before it goes on alone; 0: always goes on alone (tests).");
  m.def("set_contention", &fastrnn::set_contention, py::arg("seen"),
        "Behave as if other programs were seen to want the cores, or forget that they were (tests).");
  m.def("guards_work", &fastrnn::guards_work, "Whether the checks that set_poison switches on notice a stray write.");
  m.def("layer", &fastrnn::layer, py::arg("call"),
        "One layer in eager mode, of a flat call: [y, final states...], or None if it needs the dispatcher.");
  m.def(
      "is_finite", [](const fastrnn::Tensor& t) { return fastrnn::is_finite_matrix(t); }, py::arg("t"),
      "Return True if t is an ordinary floating-point matrix on the CPU without an infinite number or NaN.");
  m.def("use_higher_order", &fastrnn::use_higher_order, py::arg("function"));
  m.def("use_preparation", &fastrnn::use_preparation, py::arg("function"),
        "(cell, dtype, device): makes the kernels of a custom cell; returns why there are none, or an empty string.");
  m.def(
      "unknown_cell", [](const std::string& name) { return fastrnn::unknown_cell(name, &fastrnn::cell_name); },
      py::arg("name"), "The message of the error for a name that no cell has.");
  m.def(
      "has_kernels",
      [](const std::string& name, const py::object& dtype) {
        if (!THPDtype_Check(dtype.ptr())) throw py::type_error("dtype: expected a torch.dtype");
        return fastrnn::has_kernels(name, reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type);
      },
      py::arg("cell"), py::arg("dtype"));
  m.def("load_cells", &fastrnn::load_cells_from, py::arg("path"), "Adds the kernels of a user's cell.");
  m.def("cells", &fastrnn::cells, "Names of the cells that have kernels.");
  m.def("cell_traits", &fastrnn::cell_traits, py::arg("name"),
        "The sizes of a cell, and of what it saves for backward.");
  PyModule_AddFunctions(m.ptr(), fastrnn::fast_path_methods());
  PyModule_AddFunctions(m.ptr(), fastrnn::stream_methods());
  m.def(
      "plain_copy", [](const fastrnn::Tensor& t) { return fastrnn::or_none(fastrnn::plain_copy(t)); },
      "A dense copy apart from autograd, modes and transforms; None where one of them has wrapped the tensor.");
  py::class_<fastrnn::Stream, std::shared_ptr<fastrnn::Stream>>(m, "Stream", "The kernels' side of fastrnn.Stream.")
      .def(py::init([](const std::string& cell, const fastrnn::Layers& weights, int64_t batch) {
        return std::make_shared<fastrnn::Stream>(cell, fastrnn::tensors_of(weights), batch);
      }))
      .def(
          "set_weights", [](fastrnn::Stream& s, const fastrnn::Layers& w) { s.set_weights(fastrnn::tensors_of(w)); },
          py::call_guard<py::gil_scoped_release>())
      .def("states", &fastrnn::Stream::states, py::call_guard<py::gil_scoped_release>())
      .def("set_states", &fastrnn::Stream::set_states, py::call_guard<py::gil_scoped_release>())
      .def("reset", &fastrnn::Stream::reset, py::call_guard<py::gil_scoped_release>())
      .def("handle", [](std::shared_ptr<fastrnn::Stream> s) {
        return py::capsule(new std::shared_ptr<fastrnn::Stream>(std::move(s)), fastrnn::kStreamHandle, [](PyObject* o) {
          delete static_cast<std::shared_ptr<fastrnn::Stream>*>(PyCapsule_GetPointer(o, fastrnn::kStreamHandle));
        });
      });
  m.def("build_info", &fastrnn::build_info);
}
