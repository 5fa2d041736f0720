// Large float32 products by sums of bfloat16 parts, where the processor has a matrix unit.
#pragma once

#include <stdint.h>

namespace fastrnn {

// out (M, N) = a (M, K) · b (K, N), plus bias (N) unless null, or plus what is there with `add`. Of each operand's two
// strides, one is 1.
struct MatmulArgs {
  int64_t rows, columns, depth;  // M, N, K
  const float* a;
  int64_t a_row, a_depth;
  const float* b;
  int64_t b_depth, b_column;
  const float* bias;
  float* out;
  int64_t out_row;
  bool add;
  int threads;
};

// Whether it gains anything over float32 arithmetic: true only if the instruction set in force has what it needs.
bool matmul_in_parts_pays(int64_t rows, int64_t columns, int64_t depth);

// 0, or -1 out of memory, or -2 a write past the end of scratch memory (checked in debugging only). The same bits for
// any number of threads.
int matmul_in_parts(const MatmulArgs& args);

}  // namespace fastrnn
