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
#include "cpu/workspace.h"

#if defined(FASTRNN_ISA_AVX512)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#endif
#elif defined(FASTRNN_ISA_AVX2)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#endif

#include FASTRNN_CELL_HEADER
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/small.h"

namespace FASTRNN_NAMESPACE {

#define FASTRNN_JOIN_(a, b) a##b
#define FASTRNN_JOIN(a, b) FASTRNN_JOIN_(a, b)

const CellKernels* FASTRNN_JOIN(FASTRNN_CELL_NAME, _kernels)() {
  using Cell = FASTRNN_CELL_NAME;
  static const CellKernels kernels = {
      Cell::kGates,
      Cell::kStates,
      Cell::kSaved,
      Cell::kSplitGradient,
      Cell::kReadsHidden,
      {&forward<Cell, float>, &forward<Cell, double>, &forward<Cell, BFloat16>, &forward<Cell, Float16>},
      {&backward<Cell, float>, &backward<Cell, double>, &backward<Cell, BFloat16>, &backward<Cell, Float16>},
      {{&small_by_rows<float>, &small_by_rows<double>},
       {&small_by_columns<float>, &small_by_columns<double>},
       {&small_outer<float>, &small_outer<double>}},
  };
  return &kernels;
}

}  // namespace FASTRNN_NAMESPACE

#if defined(FASTRNN_ISA_AVX512) || defined(FASTRNN_ISA_AVX2)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
