#include <string>

#include "binding/buffers.h"
#include "binding/cell_name.h"
#include "binding/ops.h"
#include "binding/products.h"
#include "cpu/dispatch.h"

namespace fastrnn {

namespace {

constexpr int kParts = static_cast<int>(Format::kFloat32Parts);

CellFinder cell_finder;

}  // namespace

const CellKernels* cell_named(const std::string& name) {
  const CellKernels* cell = find_cell(name.c_str());
  if (cell == nullptr && cell_finder) {
    cell_finder(name);
    cell = find_cell(name.c_str());
  }
  if (cell != nullptr) return cell;
  std::string known;
  for (int k = 0; cell_name(k) != nullptr; ++k) known += std::string(k > 0 ? ", " : "") + cell_name(k);
  TORCH_CHECK_VALUE(false, "cell: expected one of ", known, ", or a custom cell that this process defines or whose ",
                    "kernels for ", capability(), " are in the cache folder (FASTRNN_CACHE), got ", name);
}

void set_cell_finder(CellFinder finder) { cell_finder = std::move(finder); }

Format format_for(const CellKernels& cell, at::ScalarType type) {
  const Format format = format_of(type);
  const bool parts = format == Format::kFloat32 && cell.forward[kParts] != nullptr && products::in_parts();
  return parts ? Format::kFloat32Parts : format;
}

Call::Call(c10::string_view name, const Tensor& rows_like, const Tensor& w_hh, const OptionalTensor& w_hr,
           const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset)
    : cell(cell_named(without_bound(name))), clip(bound_of(name)), layout(rows_like, batch_sizes, lengths, reset) {
  TORCH_CHECK(w_hh.dim() == 2, "w_hh: expected shape [", cell->recurrent, "·H, P], got ", w_hh.sizes());
  projected = w_hh.size(1);
  // Where its rows do not say H, h has it: only cells with as many recurrent products as gates can be projected.
  hidden = cell->recurrent < cell->gates || cell->parameters > 0 ? projected : w_hh.size(0) / cell->recurrent;
  TORCH_CHECK(w_hh.size(0) == recurrent_width() + cell->parameters, "w_hh: expected shape [", cell->recurrent, "·H",
              cell->parameters > 0 ? " + " + std::to_string(cell->parameters) : "", ", P], got ", w_hh.sizes());
  format = format_for(*cell, w_hh.scalar_type());
  options = w_hh.options().requires_grad(false);
  TORCH_CHECK(hidden > 0, "w_hh: expected at least one hidden unit, got shape ", w_hh.sizes());
  check(w_hh, {recurrent_width() + cell->parameters, projected}, "w_hh");
  if (w_hr) {
    TORCH_CHECK_VALUE(!cell->reads_hidden, "w_hr: the cell ", name, " cannot be used with a projection");
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
