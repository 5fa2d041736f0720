// Packed weights, in the order in which a product reads them.
//
// Panels: units are grouped by the lanes of a vector, and as many groups as a tile computes at a time are adjacent
// (`width`; the last panel may have fewer): for each depth k, for each group j of them and each of NV blocks (gates),
// there is one vector:  packed[j / width][k][j % width][v][lane] = weight of block v, unit j·lanes + lane, at depth k.
// A tile thus reads one stream. Units past the end are zero.
#pragma once

#include "simd/storage.h"

namespace FASTRNN_NAMESPACE {

FASTRNN_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTRNN_FN int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTRNN_FN int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
};
// The part of [0, n) that belongs to `rank` of `size`
FASTRNN_FN Range share(int64_t n, int rank, int size) { return {n * rank / size, n * (rank + 1) / size}; }

template <class C>
struct Panels {
  using Element = C;
  static constexpr int kLanes = Vec<C>::kLanes;

  C* data;
  int64_t depth, units;
  int blocks;     // NV
  int width = 1;  // adjacent groups

  static int64_t groups(int64_t units) { return divide_up(units, kLanes); }
  int64_t groups() const { return groups(units); }
  int64_t size() const { return groups() * depth * blocks * kLanes; }
  bool far() const { return size() * static_cast<int64_t>(sizeof(C)) > (1 << 20); }

  // The start of group j, and the distance from one depth to the next
  C* group(int64_t j) const { return data + ((j - j % width) * depth + j % width) * blocks * kLanes; }
  int64_t step(int64_t j) const { return smaller(width, groups() - (j - j % width)) * blocks * kLanes; }
};

// From w [blocks·units, depth], the layout of w_hh in forward, with rows `stride` apart: rows become lanes.
template <class T, class C>
void pack_rows_as_lanes(const T* w, int64_t stride, const Panels<C>& panels, Range groups) {
  using V = Vec<C>;
  constexpr int kLanes = V::kLanes;
  const int64_t depth = panels.depth;
  for (int64_t j = groups.begin; j < groups.end; ++j) {
    const int64_t first = j * kLanes, step = panels.step(j);
    const int lanes = static_cast<int>(smaller(kLanes, panels.units - first));
    for (int v = 0; v < panels.blocks; ++v) {
      const T* rows = w + (v * panels.units + first) * stride;
      C* out = panels.group(j) + v * kLanes;
      for (int64_t k = 0; k < depth; k += kLanes) {
        const int here = static_cast<int>(smaller(kLanes, depth - k));
        V block[kLanes];
        for (int lane = 0; lane < lanes; ++lane) {
          const T* from = rows + lane * stride + k;
          block[lane] = load_first(from, here);
        }
        for (int lane = lanes; lane < kLanes; ++lane) block[lane] = V::zero();
        transpose(block);
        for (int i = 0; i < here; ++i) block[i].store(out + (k + i) * step);
      }
    }
  }
}

template <class T, class C>
void pack_rows_as_lanes(const T* w, const Panels<C>& panels, Range groups) {
  pack_rows_as_lanes(w, panels.depth, panels, groups);
}

// From w [depth, units], the layout of w_hh in backward, with rows `stride` apart: columns are lanes already. One
// block.
template <class T, class C>
void pack_columns_as_lanes(const T* w, int64_t stride, const Panels<C>& panels, Range groups) {
  constexpr int kLanes = Vec<C>::kLanes;
  for (int64_t j = groups.begin; j < groups.end;) {
    const int64_t beside = smaller(groups.end, j - j % panels.width + panels.width);  // adjacent groups
    const int64_t step = panels.step(j);
    C* out = panels.group(j);
    for (int64_t k = 0; k < panels.depth; ++k, out += step) {
      const T* row = w + k * stride;
      for (int64_t g = j; g < beside; ++g) {
        const int lanes = static_cast<int>(smaller(kLanes, panels.units - g * kLanes));
        const T* from = row + g * kLanes;
        load_first(from, lanes).store(out + (g - j) * kLanes);
      }
    }
    j = beside;
  }
}

template <class T, class C>
void pack_columns_as_lanes(const T* w, const Panels<C>& panels, Range groups) {
  pack_columns_as_lanes(w, panels.units, panels, groups);
}

// A bias [blocks·units] in the same groups: packed[j][v][lane]; zeros if missing.
template <class T, class C>
void pack_bias(const T* bias, int blocks, int64_t units, C* packed, Range groups) {
  constexpr int kLanes = Vec<C>::kLanes;
  for (int64_t j = groups.begin; j < groups.end; ++j) {
    for (int v = 0; v < blocks; ++v) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t unit = j * kLanes + lane;
        packed[(j * blocks + v) * kLanes + lane] =
            bias != nullptr && unit < units ? widen(bias[v * units + unit]) : C(0);
      }
    }
  }
}

}  // namespace FASTRNN_NAMESPACE
