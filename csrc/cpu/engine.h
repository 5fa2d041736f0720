// Engines, which compute the products of a step. A driver is the same for every engine; an engine defines
//   Weights        packed weights, laid out by pack_rows_as_lanes and pack_columns_as_lanes
//   Operand        packed rows; written by the element-wise stage, vector by vector
//   sweep<NV>()    all products of a step, passed to the element-wise stage group by group (see Sweep)
// This one multiplies SIMD vectors in the compute dtype of the cell.
#pragma once

#include "cpu/product.h"

namespace FASTRNN_NAMESPACE {

template <class C>
struct PlainRows {
  using V = Vec<C>;
  using Element = C;
  C* data = nullptr;
  int64_t stride = 0;

  PlainRows() = default;
  explicit PlainRows(int64_t depth) : stride(divide_up(depth, V::kLanes) * V::kLanes) {}
  int64_t size(int64_t rows) const { return rows * stride; }
  void prepare(Range) const {}
  template <bool Full>
  FASTRNN_FN void store(V x, int64_t row, int64_t k, Lanes<Full> lanes) const {
    lanes.store(x, data + row * stride + k);
  }
};

template <class C>
struct Plain {
  static constexpr bool kReadsStates = true;  // rows of a state or gradient can be the operand directly
  static constexpr int kGroupsPast = 0;       // groups after the last one whose biases may be read
  static constexpr int kBytes = sizeof(C);    // bytes of a weight
  static constexpr double kSpeed = 4.0 / sizeof(C);
  using Weights = Panels<C>;
  using Operand = PlainRows<C>;

  // For products with NV blocks of weights and `rows` rows at a time
  template <int NV>
  static Weights weights(int64_t depth, int64_t units, int64_t rows) {
    return {nullptr, depth, units, NV, tile_width<NV>(rows)};
  }
  template <int NV>
  static Sweep<NV, C> sweep(const Weights& weights, const C* bias, const Operand& x, Range groups, bool backwards) {
    return {weights, bias, x.data, x.stride, groups, backwards};
  }
};

}  // namespace FASTRNN_NAMESPACE
