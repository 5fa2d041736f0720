// Products of one instruction set: the whole of a translation unit. The build writes a source for each,
//   #define FASTRNN_ISA_AVX512 1 / FASTRNN_ISA_NAME avx512
// and includes this file. On includes before the target region see unit.h.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <atomic>

#include "cpu/args.h"
#include "cpu/team.h"
#include "cpu/tiles_of.h"
#include "cpu/workspace.h"

// clang-format off: the order matters
#include "cpu/target_on.h"
// clang-format on

#if defined(FASTRNN_WANTS_TILES)
#if defined(FASTRNN_HAS_TILES)
#include "cpu/narrow_product.h"
#include "cpu/parts_matmul.h"
#endif

namespace fastrnn::avx512 {
const ProductKernels* product_kernels();
}

namespace FASTRNN_NAMESPACE {

// Those of AVX-512, but for products of bfloat16 and of bytes, for which there are further instructions.
ProductKernels with_parts(ProductKernels kernels) {
#if defined(FASTRNN_HAS_TILES)
  kernels.narrow[0] = &narrow_by_rows<BFloat16>;
  kernels.narrow[1] = &narrow_by_rows<int8_t>;
  kernels.in_parts[0] = &product_in_parts<1, float>;
#if defined(FASTRNN_ISA_AMX)
  kernels.in_parts[1] = &product_in_parts<2, float>;
  kernels.large[static_cast<int>(Format::kFloat16)] = &product_in_parts<2, Float16>;
#endif
#if defined(FASTRNN_TILES_ON_VECTORS)
  kernels.large[static_cast<int>(Format::kBFloat16)] = &product_in_parts<1, BFloat16>;
#else
  kernels.large[static_cast<int>(Format::kBFloat16)] = nullptr;
#endif
#endif
  return kernels;
}

const ProductKernels* product_kernels() {
  static const ProductKernels kernels = with_parts(*avx512::product_kernels());
  return &kernels;
}

}  // namespace FASTRNN_NAMESPACE

#else

#include "cpu/dense_matmul.h"
#include "cpu/narrow_product.h"
#include "cpu/small.h"

namespace FASTRNN_NAMESPACE {

const ProductKernels* product_kernels() {
  static const ProductKernels kernels = {
      {&small_by_rows<float>, &small_by_rows<double>},
      {&small_by_columns<float>, &small_by_columns<double>},
      {&small_outer<float>, &small_outer<double>},
      {&narrow_by_rows<BFloat16>, &narrow_by_rows<int8_t>},
      {&dense_product<float>, &dense_product<double>, &dense_product<BFloat16>, &dense_product<Float16>},
      {nullptr, nullptr},
  };
  return &kernels;
}

}  // namespace FASTRNN_NAMESPACE

#endif

#include "cpu/target_off.h"
