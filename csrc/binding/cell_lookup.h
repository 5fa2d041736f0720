// What the operators of both devices share in finding a cell: its name in errors, its kernels made on demand, and
// whether its h can be projected. The traits have the same names in cpu/args.h and cuda/kernels.h.
#pragma once

#include <ctype.h>
#include <stdint.h>

#include <algorithm>
#include <functional>
#include <string>

namespace fastrnn {

// Compiles and loads the kernels of a custom cell: (cell, scalar type as c10::toString has it, device) -> why there are
// none; empty if they are there now, and for a cell that Python does not know. Called without the Python GIL.
using Preparation = std::function<std::string(const std::string&, const std::string&, const std::string&)>;

// Whether h may be projected. The rows of w_hh must give H, so it is the matrix of one product with rows for every gate
// and nothing else; and the element-wise stage must not read h, which is narrower than H then.
template <class Cell>
bool projectable(const Cell& cell) {
  return cell.recurrent == cell.gates && cell.second == 0 && cell.parameters == 0 && !cell.reads_hidden;
}

// H, out of the shape (R·H + Q, P) of w_hh; of a cell without recurrent products it is P.
template <class Cell>
int64_t hidden_units(const Cell& cell, int64_t rows, int64_t projected) {
  return cell.recurrent > 0 ? (rows - cell.parameters) / cell.recurrent : projected;
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
