// Cells for the operators of every device: sizes that follow from their traits, and the lookup of kernels.
#pragma once

#include <ctype.h>
#include <stdint.h>

#include <algorithm>
#include <array>
#include <functional>
#include <string>

#include "ops/aten.h"
#include "simd/cell_traits.h"

namespace fastrnn {

// Compiles and loads the kernels of a custom cell: (cell, scalar type as in c10::toString, device) -> the problem;
// empty if they are available now, or if Python has no such cell. Called without the Python GIL.
using Preparation = std::function<std::string(const std::string&, const std::string&, const std::string&)>;

// Return true if h may be projected. H must follow from the rows of w_hh, so that must be the matrix of a single
// product with rows for every gate and nothing else; and the element-wise stage must not read h, which is then narrower
// than H.
inline bool projectable(const CellTraits& cell) {
  return cell.recurrent == cell.gates && cell.second == 0 && cell.parameters == 0 && !cell.reads_hidden;
}

// H, from the shape (R·H + Q, P) of w_hh; for a cell without recurrent products it is P.
inline int64_t hidden_units(const CellTraits& cell, int64_t rows, int64_t projected) {
  return cell.recurrent > 0 ? (rows - cell.parameters) / cell.recurrent : projected;
}

// A tensor that a forward pass saves for backward: `per_unit`·H + `constant` values for each time step of each batch
// row; not saved if both are 0.
struct SavedTensor {
  int64_t per_unit, constant;
  bool compute;  // stored in the compute dtype

  int64_t width(int64_t hidden) const { return per_unit * hidden + constant; }
};

// The saved tensors of a cell: the first min(G, K) saved values, in place of W·x; the others; states other than h, and
// sums over the units; the vectors multiplied besides h, or with a projection h before it.
constexpr size_t kSavedTensors = 4;
inline std::array<SavedTensor, kSavedTensors> saved_tensors(const CellTraits& cell, bool projection) {
  return {{{cell.saved > 0 ? cell.gates : 0, 0, false},
           {std::max(0, cell.saved - cell.gates), 0, false},
           {cell.states - 1, cell.totals, true},
           {projection ? 1 : cell.vectors, 0, false}}};
}

// The dtype that a storage dtype is computed in
inline at::ScalarType compute_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// The kernel format of a storage dtype, in a device's enumeration. Raises TypeError for dtypes without kernels.
template <class Format>
Format storage_format(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Format::kFloat32;
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

// Limit for H that keeps products of sizes within int64; such a layer would fit in no memory.
constexpr int64_t kTooManyUnits = int64_t{1} << 40;

// Names of custom cells end in twelve digits of a digest of their source (fastrnn/custom/definition.py).
inline bool names_custom_cell(const std::string& name) {
  constexpr size_t kDigits = 12;
  if (name.size() < kDigits + 2 || name[name.size() - kDigits - 1] != '_') return false;
  return std::all_of(name.end() - kDigits, name.end(), [](unsigned char c) { return isxdigit(c) != 0; });
}

// Error message for an unknown cell name. `cell_name`: the k-th built-in cell, null past the last.
inline std::string unknown_cell(const std::string& name, const char* (*cell_name)(int)) {
  if (names_custom_cell(name)) {
    return "cell: expected a cell that is defined in this process, got '" + name +
           "', a custom cell: import the module that defines it first, or set FASTRNN_CACHE to a folder with its "
           "kernels";
  }
  std::string known;
  for (int k = 0; cell_name(k) != nullptr; ++k) known += std::string(k > 0 ? ", " : "") + cell_name(k);
  return "cell: expected one of " + known + ", got '" + name + "'";
}

}  // namespace fastrnn
