// R, packed for a persistent kernel (cuda/product.h): rows of a block's part of the matrix, 16 bytes at a time, zeros
// beyond its ends.
#pragma once

#include "cuda/device.h"
#include "simd/compute.h"

namespace fastrnn::cuda {

FASTRNN_FN uint32_t raw(BFloat16 x) { return x.bits; }
FASTRNN_FN uint32_t raw(Float16 x) { return x.bits; }
FASTRNN_FN uint32_t raw(float x) { return bit_cast<uint32_t>(x); }

// The first `count` numbers of a row or column, `stride` apart, followed by zeros
template <class T>
FASTRNN_DEVICE Bits128 gather(const T* from, int64_t stride, int count) {
  constexpr int kInWord = 4 / static_cast<int>(sizeof(T)), kNumbers = 4 * kInWord;
  uint32_t words[4] = {0, 0, 0, 0};
  FASTRNN_UNROLL
  for (int n = 0; n < kNumbers; ++n) {
    if (n < count) words[n / kInWord] |= raw(from[n * stride]) << (n % kInWord * 8 * static_cast<int>(sizeof(T)));
  }
  return {words[0], words[1], words[2], words[3]};
}

// Forward: the gates of a unit are adjacent rows; columns are those of R.
template <class T, int R>
struct MatrixRows {
  const T* w;
  int hidden, first_unit, units;
  bool aligned;

  FASTRNN_DEVICE MatrixRows(const T* w, int hidden, int first_unit, int units)
      : w(w),
        hidden(hidden),
        first_unit(first_unit),
        units(units),
        aligned(reinterpret_cast<uintptr_t>(w) % 16 == 0 && hidden * static_cast<int>(sizeof(T)) % 16 == 0) {}

  FASTRNN_DEVICE Bits128 operator()(int row, int column) const {
    const int unit = row / R, gate = row % R;
    if (unit >= units || column >= hidden) return {0, 0, 0, 0};
    const T* from = w + static_cast<int64_t>(gate * hidden + first_unit + unit) * hidden + column;
    // Rows of a multiple of 16 bytes end between two such loads.
    if (aligned) return *reinterpret_cast<const Bits128*>(from);
    return gather(from, 1, hidden - column);
  }
};

// Backward: a row is a column of R, with the gates' numbers in turn, each padded to `gate_numbers`.
template <class T>
struct MatrixColumns {
  const T* w;
  int gates, gate_numbers, hidden, first_unit, units;

  FASTRNN_DEVICE Bits128 operator()(int row, int column) const {
    const int gate = column / gate_numbers, from = column % gate_numbers;
    if (row >= units || gate >= gates || from >= hidden) return {0, 0, 0, 0};
    return gather(w + (static_cast<int64_t>(gate) * hidden + from) * hidden + first_unit + row, hidden, hidden - from);
  }
};

}  // namespace fastrnn::cuda
