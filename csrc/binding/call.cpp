#include <string>

#include "binding/buffers.h"
#include "binding/cell_lookup.h"
#include "binding/cell_name.h"
#include "binding/ops.h"
#include "binding/products.h"
#include "cpu/dispatch.h"

namespace fastrnn {

namespace {

constexpr int kParts = static_cast<int>(Format::kFloat32Parts);

Preparation preparation;

}  // namespace

void set_preparation(Preparation function) { preparation = std::move(function); }

const CellKernels& kernels_of(const std::string& name, at::ScalarType type) {
  const int format = static_cast<int>(format_of(type));
  const CellKernels* cell = find_cell(name.c_str());
  if (cell != nullptr && cell->forward[format] != nullptr) return *cell;
  const std::string problem = preparation ? preparation(name, c10::toString(type), "cpu") : std::string();
  cell = find_cell(name.c_str());
  TORCH_CHECK_VALUE(cell != nullptr || !problem.empty(), unknown_cell(name, &cell_name));
  TORCH_CHECK(cell != nullptr && cell->forward[format] != nullptr, "cell: expected kernels of ", name, " for ", type,
              " and the instruction set ", capability(), ", got none", problem.empty() ? "" : (": " + problem).c_str());
  return *cell;
}

Format format_for(const CellKernels& cell, at::ScalarType type) {
  const Format format = format_of(type);
  const bool parts = format == Format::kFloat32 && cell.forward[kParts] != nullptr && products::in_parts();
  return parts ? Format::kFloat32Parts : format;
}

Call::Call(c10::string_view name, const Tensor& rows_like, const Tensor& w_hh, const OptionalTensor& w_hr,
           const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset)
    : cell(&kernels_of(without_bound(name), w_hh.scalar_type())),
      clip(bound_of(name)),
      layout(rows_like, batch_sizes, lengths, reset) {
  TORCH_CHECK(w_hh.dim() == 2, "w_hh: expected shape [", cell->recurrent, "·H, P], got ", w_hh.sizes());
  TORCH_CHECK_VALUE(!w_hr || projectable(*cell), "w_hr: the cell ", name, " cannot be used with a projection");
  projected = w_hh.size(1);
  hidden = hidden_units(*cell, w_hh.size(0), projected);
  TORCH_CHECK(w_hh.size(0) == recurrent_width() + cell->parameters, "w_hh: expected shape [", cell->recurrent, "·H",
              cell->parameters > 0 ? " + " + std::to_string(cell->parameters) : "", ", P], got ", w_hh.sizes());
  format = format_for(*cell, w_hh.scalar_type());
  options = w_hh.options().requires_grad(false);
  TORCH_CHECK(hidden > 0 && hidden < kTooManyUnits && projected > 0,
              "w_hh: expected at least one hidden unit, less than ", kTooManyUnits,
              ", and an h of at least one, got shape ", w_hh.sizes());
  check(w_hh, {recurrent_width() + cell->parameters, projected}, "w_hh");
  if (w_hr) {
    check(*w_hr, {projected, hidden}, "w_hr");
  } else {
    TORCH_CHECK(projected == hidden, "w_hh: expected shape ",
                at::IntArrayRef{recurrent_width() + cell->parameters, hidden}, ", got ", w_hh.sizes());
  }
}

void Call::check(const Tensor& t, at::IntArrayRef sizes, const char* name) const {
  TORCH_CHECK(t.device().is_cpu() && t.layout() == at::kStrided, name, ": expected a dense tensor on the CPU, got ",
              t.layout(), " on ", t.device());
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

}  // namespace fastrnn
