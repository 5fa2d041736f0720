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
#include "cpu/target.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

#if defined(FASTRNN_ISA_AMX)
#define FASTRNN_ISA_AVX512 1  // all that is not about the matrix unit
#endif
#include "cpu/target_on.h"

#include FASTRNN_CELL_HEADER
#if !defined(FASTRNN_ISA_AMX) || FASTRNN_HAS_AMX
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/small.h"
#endif

#define FASTRNN_JOIN_(a, b) a##b
#define FASTRNN_JOIN(a, b) FASTRNN_JOIN_(a, b)

#if !defined(FASTRNN_ISA_AMX)

namespace FASTRNN_NAMESPACE {

const CellKernels* FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)() {
  using Cell = FASTRNN_CELL_NAME;
  static const CellKernels kernels = {
      Cell::kGates,
      Cell::kStates,
      Cell::kSaved,
      Cell::kSplitFrom,
      Cell::kReadsHidden,
      {&forward<Cell, float>, &forward<Cell, double>, &forward<Cell, BFloat16>, &forward<Cell, Float16>, nullptr},
      {&backward<Cell, float>, &backward<Cell, double>, &backward<Cell, BFloat16>, &backward<Cell, Float16>, nullptr},
      {{&small_by_rows<float>, &small_by_rows<double>},
       {&small_by_columns<float>, &small_by_columns<double>},
       {&small_outer<float>, &small_outer<double>}},
  };
  return &kernels;
}

}  // namespace FASTRNN_NAMESPACE

#include "cpu/target_off.h"

#else  // the kernels of AVX-512, but for the formats that gain from the matrix unit

#if FASTRNN_HAS_AMX
#include "cpu/tile_engine.h"
#endif

namespace fastrnn::avx512 {
const CellKernels* FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)();
}

namespace FASTRNN_NAMESPACE {

template <class Cell>
CellKernels with_tiles(CellKernels kernels) {
#if FASTRNN_HAS_AMX
  constexpr int kParts = static_cast<int>(Format::kFloat32Parts), kBrain = static_cast<int>(Format::kBFloat16);
  constexpr int kHalf = static_cast<int>(Format::kFloat16);
  kernels.forward[kParts] = &forward<Cell, float, Tiles<3>>;
  kernels.backward[kParts] = &backward<Cell, float, Tiles<3>>;
  kernels.forward[kBrain] = &forward<Cell, BFloat16, Tiles<1>>;
  kernels.backward[kBrain] = &backward<Cell, BFloat16, Tiles<1>>;
  kernels.forward[kHalf] = &forward<Cell, Float16, Tiles<2>>;
  kernels.backward[kHalf] = &backward<Cell, Float16, Tiles<2>>;
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
