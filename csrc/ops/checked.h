// A checked call: the cell's kernels on a device, its sizes, and its row layout.
#pragma once

#include <cmath>

#include "ops/call.h"
#include "ops/cell.h"

namespace fastrnn {

// Storage of tensors with the caller's leading dimensions (T, B) or, packed, (N) as rows. Each device has its own
// subclass; the arguments that describe the layout are checked here.
struct RowLayout {
  int64_t steps = 0, batch = 0, rows = 0;  // T, B, N
  std::vector<int64_t> counts;             // for packed input, the rows of each time step
  std::vector<int64_t> shape;              // leading dimensions of the caller's x and y

  std::vector<int64_t> sizes(int64_t width) const {
    std::vector<int64_t> all = shape;
    all.push_back(width);
    return all;
  }

 protected:
  // Raises the error for invalid arguments. Values of lengths are checked if they are on the CPU.
  RowLayout(const LayerCall& call, const Tensor& rows_like);
};

// Device, defined by csrc/ops/cpu/device.h and csrc/ops/cuda/device.h:
//   Cell, Layout        the table of a cell's kernels, derived from CellTraits; its RowLayout
//   Kernels             the kernels of one dtype
//   Inside              dispatcher state inside an operator
//   Memory              allocator of the kernels' outputs
//   of(call, like)      the device of a call, checked
//   cell, kernels       looked up by name and dtype; compiled on demand for a custom cell
//   products            linear products before and after the recurrence
//   run                 the driver, forward or backward
template <class Device>
struct Checked {
  at::Device device;
  const typename Device::Cell* cell;
  double clip;  // LayerCall::clip
  bool reverse;
  typename Device::Layout layout;
  int64_t hidden = 0, projected = 0;  // H, P
  bool projection;                    // of h; P may be H then too
  typename Device::Kernels kernels{};
  at::TensorOptions options;

  // `rows_like`: the tensor whose leading dimensions give the row layout (x, or y in backward).
  Checked(const LayerCall& call, const Tensor& rows_like)
      : device(Device::of(call, rows_like)),
        cell(Device::cell(call.cell, call.w_hh().scalar_type(), device)),
        clip(call.clip),
        reverse(call.reverse),
        layout(call, rows_like, device),
        projection(call.w_hr().defined()),
        options(call.w_hh().options().requires_grad(false)) {
    const Tensor& w_hh = call.w_hh();
    const auto expected = [this] {
      return std::to_string(cell->recurrent) + "·H" +
             (cell->parameters > 0 ? " + " + std::to_string(cell->parameters) : "") + ", P";
    };
    TORCH_CHECK(w_hh.dim() == 2, "w_hh: expected shape [", expected(), "], got ", w_hh.sizes());
    TORCH_CHECK_VALUE(!projection || projectable(*cell), "w_hr: the cell ", call.cell,
                      " cannot be used with a projection");
    TORCH_CHECK_VALUE(std::isfinite(clip) && clip >= 0, "clip: expected a positive number, or 0 for none, got ", clip);
    projected = w_hh.size(1);
    hidden = hidden_units(*cell, w_hh.size(0), projected);
    TORCH_CHECK(w_hh.size(0) == recurrent_width() + cell->parameters, "w_hh: expected shape [", expected(), "], got ",
                w_hh.sizes());
    kernels = Device::kernels(*cell, w_hh.scalar_type(), device);
    TORCH_CHECK(hidden > 0 && hidden < kTooManyUnits && projected > 0,
                "w_hh: expected at least one hidden unit, less than ", kTooManyUnits,
                ", and an h of at least one, got shape ", w_hh.sizes());
    check(w_hh, {w_hh.size(0), projected}, "w_hh");
    if (projection) {
      check(call.w_hr(), {projected, hidden}, "w_hr");
    } else {
      TORCH_CHECK(projected == hidden, "w_hh: expected shape ", at::IntArrayRef{w_hh.size(0), hidden}, ", got ",
                  w_hh.sizes());
    }
    check_input(call, rows_like);
    check_states(call.states(), "states");
    TORCH_CHECK(call.restarts == 0 || call.reset, "restart: expected none without reset, got ", call.restarts,
                " tensors");
    check_states(call.restart(), "restart");
  }

  int64_t gate_width() const { return cell->gates * hidden; }
  // Width of R·h; of its part that is multiplied by h itself; of its part whose gradient differs from ∂L/∂(W·x).
  int64_t recurrent_width() const { return cell->recurrent * hidden; }
  int64_t first_width() const { return (cell->recurrent - cell->second) * hidden; }
  int64_t split_width() const { return (cell->recurrent - cell->split_from) * hidden; }
  int64_t width(int s) const { return s == 0 ? projected : hidden; }
  // Rows of w_hh: those that multiply h, those that multiply other vectors, then the per-unit parameters.
  Tensor first_product(const Tensor& w_hh) const {
    return first_width() == w_hh.size(0) ? w_hh : w_hh.narrow(0, 0, first_width());
  }
  Tensor second_product(const Tensor& w_hh) const {
    return w_hh.narrow(0, first_width(), recurrent_width() - first_width());
  }
  const void* parameters_of(const Tensor& w_hh) const {  // w_hh: contiguous
    return static_cast<const char*>(w_hh.const_data_ptr()) +
           recurrent_width() * projected * static_cast<int64_t>(w_hh.element_size());
  }
  at::ScalarType type() const { return c10::typeMetaToScalarType(options.dtype()); }
  at::ScalarType compute_type() const { return fastrnn::compute_type(type()); }
  std::array<SavedTensor, kSavedTensors> saved() const { return saved_tensors(*cell, projection); }

  // Raises unless `t` has these sizes and this call's dtype and device.
  void check(const Tensor& t, at::IntArrayRef sizes, const char* name) const {
    TORCH_CHECK(t.device() == device && t.layout() == at::kStrided, name, ": expected a dense tensor on ",
                device.is_cpu() ? "the CPU" : device.str(), ", got ", t.layout(), " on ", t.device());
    TORCH_CHECK(t.scalar_type() == type(), name, ": expected dtype ", type(), ", got ", t.scalar_type());
    TORCH_CHECK(t.sizes() == sizes, name, ": expected shape ", sizes, ", got ", t.sizes());
  }

 private:
  void check_input(const LayerCall& call, const Tensor& rows_like) const {
    const Tensor &w_ih = call.w_ih(), &b_ih = call.b_ih(), &b_hh = call.b_hh();
    const int64_t width = w_ih.defined() ? w_ih.size(-1) : gate_width();
    if (w_ih.defined()) check(w_ih, {gate_width(), width}, "w_ih");
    if (b_ih.defined()) check(b_ih, {gate_width()}, "b_ih");
    if (b_hh.defined()) check(b_hh, {recurrent_width()}, "b_hh");
    if (!rows_like.is_same(call.x())) check(rows_like, layout.sizes(projected), "y");
    check(call.x(), layout.sizes(width), "x");
  }

  void check_states(at::TensorList states, const char* name) const {
    if (states.empty()) return;
    TORCH_CHECK(static_cast<int>(states.size()) == cell->states, name, ": expected ", cell->states, " tensors, got ",
                states.size());
    for (int s = 0; s < cell->states; ++s) check(states[s], {layout.batch, width(s)}, name);
  }
};

}  // namespace fastrnn
