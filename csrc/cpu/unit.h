// One cell's kernels for one instruction set: the whole of a translation unit. The build writes a source for each pair
//   #define FASTRNN_ISA_AVX512 1 / FASTRNN_ISA_NAME avx512 / FASTRNN_CELL_HEADER "cells/lstm.h" / FASTRNN_CELL_NAME
//   lstm
// and includes this file.
//
// Everything from the standard library and everything shared between instruction sets is included *before* the target
// region: compiled inside it, an inline function could be the copy that the linker keeps for all.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "cpu/args.h"
#include "cpu/plan.h"
#include "cpu/team.h"
#include "cpu/tiles_of.h"
#include "cpu/workspace.h"

// clang-format off: the order matters
#include "cpu/target_on.h"
// clang-format on

#include FASTRNN_CELL_HEADER
#if !defined(FASTRNN_WANTS_TILES) || defined(FASTRNN_HAS_TILES)
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/staged_backward.h"
#include "cpu/staged_forward.h"
#endif

// Dtypes to compile, one bit each: all for the built-in cells, those in use for a custom cell
#if !defined(FASTRNN_FORMATS)
#define FASTRNN_FORMATS 63
#endif

namespace FASTRNN_NAMESPACE {
constexpr bool compiled(Format format) { return (FASTRNN_FORMATS >> static_cast<int>(format) & 1) != 0; }
}  // namespace FASTRNN_NAMESPACE

#define FASTRNN_JOIN_(a, b) a##b
#define FASTRNN_JOIN(a, b) FASTRNN_JOIN_(a, b)

#if !defined(FASTRNN_WANTS_TILES)

namespace FASTRNN_NAMESPACE {

// Traits that only a cell with stages has (staged.h)
template <class Cell>
concept Staged = requires { typename Cell::Ahead; };
template <class Cell>
struct Structure {
  static constexpr int kBlocks[1] = {Cell::kSecond};
  static constexpr int kVectors = Cell::kSecond > 0 ? 1 : 0, kTotals = 0;
};
template <Staged Cell>
struct Structure<Cell> {
  static constexpr const int (&kBlocks)[Cell::kVectors + 1] = Cell::kVectorBlocks;
  static constexpr int kVectors = Cell::kVectors, kTotals = Cell::Ahead::kTotals;
};

template <class Cell, class T, Format kFormat>
void add_format(CellKernels& kernels) {
  if constexpr (compiled(kFormat) && Staged<Cell>) {
    kernels.forward[static_cast<int>(kFormat)] = &staged_forward<Cell, T>;
    kernels.backward[static_cast<int>(kFormat)] = &staged_backward<Cell, T>;
  } else if constexpr (compiled(kFormat)) {
    kernels.forward[static_cast<int>(kFormat)] = &forward<Cell, T>;
    kernels.backward[static_cast<int>(kFormat)] = &backward<Cell, T>;
  }
}

template <class Cell>
CellKernels plain_kernels() {
  CellKernels kernels = {
      {Cell::kGates, Cell::kRecurrent, Cell::kSecond, Cell::kStates, Cell::kSaved, Cell::kSplitFrom, Cell::kParameters,
       Cell::kReadsHidden, Structure<Cell>::kVectors, Structure<Cell>::kBlocks, Structure<Cell>::kTotals, Staged<Cell>},
      {},
      {},
  };
  add_format<Cell, float, Format::kFloat32>(kernels);
  add_format<Cell, double, Format::kFloat64>(kernels);
  add_format<Cell, BFloat16, Format::kBFloat16>(kernels);
  add_format<Cell, Float16, Format::kFloat16>(kernels);
  return kernels;
}

const CellKernels* FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)() {
  static const CellKernels kernels = plain_kernels<FASTRNN_CELL_NAME>();
  return &kernels;
}

}  // namespace FASTRNN_NAMESPACE

#include "cpu/target_off.h"

#else  // the kernels of AVX-512, but for the formats that gain from products of parts

#if defined(FASTRNN_HAS_TILES)
#include "cpu/tile_engine.h"
#endif

namespace fastrnn::avx512 {
const CellKernels* FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)();
}

namespace FASTRNN_NAMESPACE {

#if defined(FASTRNN_HAS_TILES)
template <class Cell, class T, Format kFormat, int kParts>
void add_tiles(CellKernels& kernels) {
  if constexpr (compiled(kFormat) && !requires { typename Cell::Ahead; }) {
    kernels.forward[static_cast<int>(kFormat)] = &forward<Cell, T, Tiles<kParts>>;
    kernels.backward[static_cast<int>(kFormat)] = &backward<Cell, T, Tiles<kParts>>;
  }
}
#endif

template <class Cell>
CellKernels with_tiles(CellKernels kernels) {
#if defined(FASTRNN_HAS_TILES)
  add_tiles<Cell, float, Format::kFloat32OnePart, 1>(kernels);
  add_tiles<Cell, BFloat16, Format::kBFloat16, 1>(kernels);
#endif
#if defined(FASTRNN_HAS_TILES) && defined(FASTRNN_ISA_AMX)  // three products on vectors take longer than one in float32
  add_tiles<Cell, float, Format::kFloat32TwoParts, 2>(kernels);
  add_tiles<Cell, Float16, Format::kFloat16, 2>(kernels);
#endif
  return kernels;
}

const CellKernels* FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)() {
  static const CellKernels kernels =
      with_tiles<FASTRNN_CELL_NAME>(*avx512::FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)());
  return &kernels;
}

}  // namespace FASTRNN_NAMESPACE

#include "cpu/target_off.h"

#endif
