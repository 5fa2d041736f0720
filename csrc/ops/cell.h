// Cells as the operators of every device see them: sizes that follow from their traits, and the search for kernels.
#pragma once

#include <ATen/ATen.h>
#include <ctype.h>
#include <stdint.h>

#include <algorithm>
#include <array>
#include <functional>
#include <string>

#include "simd/cell_traits.h"

namespace fastrnn {

// Compiles and loads the kernels of a custom cell: (cell, scalar type as c10::toString has it, device) -> why there are
// none; empty if they are there now, and for a cell that Python does not know. Called without the Python GIL.
using Preparation = std::function<std::string(const std::string&, const std::string&, const std::string&)>;

// Return true if h may be projected. The rows of w_hh must give H, so it is the matrix of one product with rows for
// every gate and nothing else; and the element-wise stage must not read h, which is narrower than H then.
inline bool projectable(const CellTraits& cell) {
  return cell.recurrent == cell.gates && cell.second == 0 && cell.parameters == 0 && !cell.reads_hidden;
}

// H, out of the shape (R·H + Q, P) of w_hh; of a cell without recurrent products it is P.
inline int64_t hidden_units(const CellTraits& cell, int64_t rows, int64_t projected) {
  return cell.recurrent > 0 ? (rows - cell.parameters) / cell.recurrent : projected;
}

// One of the tensors that a forward pass saves for backward: `per_unit`·H + `constant` values for each time step of
// each batch row; none if both are 0.
struct SavedTensor {
  int64_t per_unit, constant;
  bool compute;  // in the dtype that is computed in

  int64_t width(int64_t hidden) const { return per_unit * hidden + constant; }
};

// Those of a cell: the first min(G, K) saved values, in place of W·x; the others; states other than h, and sums over
// the units; the vectors besides h that are multiplied, or with a projection h before it.
constexpr size_t kSavedTensors = 4;
inline std::array<SavedTensor, kSavedTensors> saved_tensors(const CellTraits& cell, bool projection) {
  return {{{cell.saved > 0 ? cell.gates : 0, 0, false},
           {std::max(0, cell.saved - cell.gates), 0, false},
           {cell.states - 1, cell.totals, true},
           {projection ? 1 : cell.vectors, 0, false}}};
}

// The dtype that a storage dtype is computed in.
inline at::ScalarType compute_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// The kernel format of a storage dtype, in a device's own enumeration. Raises TypeError for dtypes without kernels.
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

// A bound for H that keeps the products of sizes within int64; no memory holds such a layer.
constexpr int64_t kTooManyUnits = int64_t{1} << 40;

// Names of custom cells end in twelve digits of a digest of their source (fastrnn/custom/definition.py).
inline bool names_custom_cell(const std::string& name) {
  constexpr size_t kDigits = 12;
  if (name.size() < kDigits + 2 || name[name.size() - kDigits - 1] != '_') return false;
  return std::all_of(name.end() - kDigits, name.end(), [](unsigned char c) { return isxdigit(c) != 0; });
}

// The message for a name that no cell has. `cell_name`: the k-th built-in cell, null past the last.
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
