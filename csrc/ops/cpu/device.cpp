#include "ops/cpu/device.h"

#include <string.h>

#include "cpu/dispatch.h"
#include "ops/cpu/precision.h"
#include "ops/finite.h"

namespace fastrnn {

namespace {

Preparation preparation;

// R·h + b_hh of a sequence's only time step: packing weights that are read once does not pay. Without initial states
// the product of a single zero row is computed and shared, because zero times an infinite weight is NaN.
Tensor only_product(const Checked<Cpu>& c, const ForwardPass& pass) {
  const Tensor matrix = c.first_product(pass.w_hh);
  if (!pass.states.empty()) return products::forward(pass.states[0], matrix, optional(pass.b_hh));
  const Tensor row = products::forward(at::zeros({1, c.projected}, c.options), matrix, optional(pass.b_hh));
  return c.layout.batch == 1 ? row : row.expand({c.layout.batch, row.size(1)}).contiguous();
}

Tensor copy_of(const Tensor& t, at::IntArrayRef sizes) {
  Tensor copy = products::empty(sizes, t);
  memcpy(copy.mutable_data_ptr(), t.const_data_ptr(), copy.nbytes());
  return copy;
}

}  // namespace

void set_preparation(Preparation function) { preparation = std::move(function); }

const CellKernels& kernels_of(const std::string& name, at::ScalarType type) {
  const int format = static_cast<int>(storage_format<Format>(type));
  const CellKernels* cell = find_cell(name.c_str());
  if (cell != nullptr && cell->forward[format] != nullptr) return *cell;
  const std::string problem = preparation ? preparation(name, c10::toString(type), "cpu") : std::string();
  cell = find_cell(name.c_str());
  TORCH_CHECK_VALUE(cell != nullptr || !problem.empty(), unknown_cell(name, &cell_name));
  TORCH_CHECK(cell != nullptr && cell->forward[format] != nullptr, "cell: expected kernels of ", name, " for ", type,
              " and the instruction set ", capability(), ", got none", problem.empty() ? "" : (": " + problem).c_str());
  return *cell;
}

bool multiplies_ahead(const CellKernels& cell, int64_t steps) {
  return steps == 1 && !cell.staged && cell.second == 0 && cell.recurrent > 0 && !products::batch_invariant();
}

Format format_for(const CellKernels& cell, at::ScalarType type) {
  const Format format = storage_format<Format>(type);
  TORCH_CHECK(!products::batch_invariant() || format == Format::kFloat32 || format == Format::kFloat64,
              "batch_invariant: expected float32 or float64, got ", type);
  if (format != Format::kFloat32) return format;
  const int parts = parts_allowed();
  const Format wanted = parts == 2 ? Format::kFloat32TwoParts : Format::kFloat32OnePart;
  return parts > 0 && cell.forward[static_cast<int>(wanted)] != nullptr ? wanted : format;
}

Tensor Cpu::Memory::saved(const CpuLayout& layout, int64_t width, const at::TensorOptions& options) {
  Tensor t = empty({layout.capacity(), width}, options);
  if (const int64_t beyond = layout.capacity() - layout.rows; beyond > 0) t.narrow(0, layout.rows, beyond).zero_();
  return t;
}

bool Cpu::adds_bias(const Checked<Cpu>& c, const LayerCall& call) {
  return call.w_ih().defined() && (c.kernels == Format::kBFloat16 || c.kernels == Format::kFloat16);
}

void Cpu::run(const Checked<Cpu>& c, const ForwardPass& pass, Memory& memory) {
  const bool at_once = multiplies_ahead(*c.cell, c.layout.steps);
  const Tensor rh = at_once ? only_product(c, pass) : Tensor();
  ForwardArgs args{};
  fill(c, pass, args);
  args.seq = c.layout.sequence(c.hidden, c.projected, c.reverse);
  args.b_ih = data_of(pass.b_ih);
  if (at_once) args.b_hh = nullptr;
  args.w_hr = data_of(pass.w_hr);
  args.rh = data_of(rh);
  memory.verify(c.cell->forward[static_cast<int>(c.kernels)](args));
}

void Cpu::run(const Checked<Cpu>& c, BackwardPass& pass, Memory& memory) {
  BackwardArgs args{};
  fill(c, pass, args);
  args.seq = c.layout.sequence(c.hidden, c.projected, c.reverse);
  args.w_hr = data_of(pass.w_hr);
  args.hidden_unused = pass.hidden_unused;
  args.initial_product = !multiplies_ahead(*c.cell, c.layout.steps);
  for (size_t s = 0; s < pass.grad_restart.size(); ++s) args.grad_restart[s] = pass.grad_restart[s].data_ptr();
  memory.verify(c.cell->backward[static_cast<int>(c.kernels)](args));
  if (pass.grad_states.empty() || args.initial_product) return;
  Tensor& gradient = pass.grad_states[0];
  Tensor first = c.layout.rows == c.layout.batch ? gradient : gradient.narrow(0, 0, c.layout.rows);
  products::add_of_input(first, recurrent_products(c, pass), c.first_product(pass.w_hh));
}

Tensor Cpu::parameter_gradients(const Checked<Cpu>& c, Memory& memory) {
  Tensor sums = memory.empty({c.layout.batch, c.cell->parameters * c.hidden}, c.options.dtype(c.compute_type()));
  if (sums.numel() > 0) clear(sums);
  return sums;
}

Tensor Cpu::hidden_before(const Checked<Cpu>& c, const BackwardPass& pass) {
  const CpuLayout& layout = c.layout;
  const int64_t N = layout.rows, B = layout.batch;
  // In `source`, row N + i is the initial state of row i; the restart states follow.
  std::vector<Tensor> parts{pass.y, pass.states.empty() ? at::zeros({B, c.projected}, c.options) : pass.states[0]};
  const int64_t restart = N + (pass.restart.empty() ? 0 : B);
  if (!pass.restart.empty()) parts.push_back(pass.restart[0]);
  Tensor index = at::empty({N}, at::kLong);
  int64_t* to = index.data_ptr<int64_t>();
  const bool* reset = layout.reset.defined() ? layout.reset.const_data_ptr<bool>() : nullptr;
  for (int64_t t = 0; t < layout.steps; ++t) {
    const int64_t before = c.reverse ? t + 1 : t - 1;
    const bool inside = before >= 0 && before < layout.steps;
    for (int64_t i = 0; i < layout.counts[t]; ++i) {
      const int64_t row = layout.offsets[t] + i;
      if (!inside || i >= layout.counts[before]) {
        to[row] = N + i;
      } else {
        const int64_t previous = layout.offsets[before] + i;
        to[row] = reset != nullptr && reset[c.reverse ? previous : row] ? restart + i : previous;
      }
    }
  }
  return at::cat(parts).index_select(0, index);
}

Tensor Cpu::unprojected(const Checked<Cpu>& c, const BackwardPass& pass) {
  const CpuLayout& layout = c.layout;
  const Tensor rows = pass.saved[3].reshape({-1, c.hidden}).narrow(0, 0, layout.rows);
  if (!pass.hidden_unused) return rows;
  const int64_t last = c.reverse ? 0 : layout.steps - 1;
  Tensor copy = rows.clone();
  copy.narrow(0, layout.offsets[last], layout.counts[last]).zero_();
  return copy;
}

Tensor Cpu::columns(const Tensor& left, int64_t count, const Tensor& right) {
  Tensor whole = products::empty({left.size(0), count + right.size(1)}, left);
  const auto bytes = [](const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); };
  const size_t size = left.itemsize(), row = static_cast<size_t>(whole.size(1)) * size;
  const size_t row_of_left = static_cast<size_t>(left.size(1)) * size;
  const size_t front = static_cast<size_t>(count) * size, back = static_cast<size_t>(right.size(1)) * size;
  for (size_t n = 0; n < static_cast<size_t>(left.size(0)); ++n) {
    memcpy(bytes(whole) + n * row, bytes(left) + n * row_of_left, front);
    memcpy(bytes(whole) + n * row + front, bytes(right) + n * back, back);
  }
  return whole;
}

Tensor Cpu::sum_rows(const Tensor& t) { return t.size(0) == 1 ? copy_of(t, t.sizes().slice(1)) : t.sum(0); }
Tensor Cpu::copy(const Tensor& t) { return copy_of(t, t.sizes()); }
void Cpu::clear(Tensor& t) { memset(t.mutable_data_ptr(), 0, t.nbytes()); }

void Cpu::add_of_zeros(Tensor& out, const Tensor& drh) {
  if (!all_finite(drh)) products::add_of_weight(out, drh, at::zeros({drh.size(0), out.size(1)}, drh.options()));
}

}  // namespace fastrnn
