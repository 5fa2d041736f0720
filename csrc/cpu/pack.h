// Weights laid out in the order in which a product reads them.
//
// Panels: units are grouped by the lanes of a vector; for each group j, each depth k and each of NV blocks (gates)
// there is one vector:  packed[j][k][v][lane] = weight of block v, unit j·lanes + lane, at depth k.  Units past the end
// are zero.
#pragma once

#include "math/storage.h"

namespace FASTRNN_NAMESPACE {

FASTRNN_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTRNN_FN int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTRNN_FN int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
};
// The part of [0, n) that belongs to `rank` of `size`.
FASTRNN_FN Range share(int64_t n, int rank, int size) { return {n * rank / size, n * (rank + 1) / size}; }

// What is fetched into the second-level cache meanwhile: so many lines at each depth. Weights that do not fit there
// would otherwise come at the speed of what lies behind it, once a step, with the arithmetic waiting.
struct Ahead {
  const char* from = nullptr;
  int lines = 0;
};

template <class C>
struct Panels {
  C* data;
  int64_t depth, units;
  int blocks;  // NV

  static int64_t groups(int64_t units) { return divide_up(units, Vec<C>::kLanes); }
  static int64_t size(int64_t units, int64_t depth, int blocks) {
    return groups(units) * depth * blocks * Vec<C>::kLanes;
  }
  int64_t groups() const { return groups(units); }
  int64_t stride() const { return depth * blocks * Vec<C>::kLanes; }
  C* group(int64_t j) const { return data + j * stride(); }

  // The share of the groups from j on (the next ones to be used; after the last, the first) that is fetched while the
  // `part`-th of `parts` of the rows is computed. Nothing if all weights are near anyway or there is nothing to hide
  // behind.
  Ahead ahead(int64_t j, int width, int64_t part, int64_t parts) const {
    constexpr int64_t kNear = 1 << 20;
    if (parts < 2 || size(units, depth, blocks) * static_cast<int64_t>(sizeof(C)) <= kNear) return {};
    const int64_t lines = divide_up(width * blocks * kVectorBytes, 64 * parts);  // of 64 bytes, at each depth
    const C* from = group(j < groups() ? j : 0) + part * lines * depth * (64 / static_cast<int64_t>(sizeof(C)));
    return {reinterpret_cast<const char*>(from), static_cast<int>(lines)};
  }
};

// From w [blocks·units, depth], the layout of w_hh in forward: rows become lanes.
template <class T, class C>
void pack_rows_as_lanes(const T* w, const Panels<C>& panels, Range groups) {
  constexpr int kLanes = Vec<C>::kLanes;
  constexpr int kDepth = 16;  // a block of kLanes × kDepth is turned at a time, so that reads are whole cache lines
  for (int64_t j = groups.begin; j < groups.end; ++j) {
    for (int v = 0; v < panels.blocks; ++v) {
      const int64_t first = j * kLanes;
      const int lanes = static_cast<int>(smaller(kLanes, panels.units - first));
      const T* rows = w + (v * panels.units + first) * panels.depth;
      C* out = panels.group(j) + v * kLanes;
      for (int64_t k0 = 0; k0 < panels.depth; k0 += kDepth) {
        const int depth = static_cast<int>(smaller(kDepth, panels.depth - k0));
        C block[kLanes][kDepth] = {};
        for (int lane = 0; lane < lanes; ++lane) {
          for (int k = 0; k < depth; ++k) block[lane][k] = widen(rows[lane * panels.depth + k0 + k]);
        }
        for (int k = 0; k < depth; ++k) {
          C* to = out + (k0 + k) * panels.blocks * kLanes;
          for (int lane = 0; lane < kLanes; ++lane) to[lane] = block[lane][k];
        }
      }
    }
  }
}

// From w [depth, units], the layout of w_hh in backward: columns are lanes already. One block.
template <class T, class C>
void pack_columns_as_lanes(const T* w, const Panels<C>& panels, Range groups) {
  constexpr int kLanes = Vec<C>::kLanes;
  for (int64_t j = groups.begin; j < groups.end; ++j) {
    const int64_t first = j * kLanes;
    const int lanes = static_cast<int>(smaller(kLanes, panels.units - first));
    C* out = panels.group(j);
    for (int64_t k = 0; k < panels.depth; ++k, out += kLanes) {
      const T* row = w + k * panels.units + first;
      (lanes == kLanes ? load(row) : load_some(row, lanes)).store(out);
    }
  }
}

// A bias [blocks·units] in the same groups: packed[j][v][lane]; zeros where there is none.
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
