// Kernels for row layouts on a GPU.
#pragma once

#include "cuda/kernels.h"

namespace fastrnn::cuda {

// The first row of each time step of packed input, [T + 1] in device memory, from the rows of each step, [T] on the
// host. The numbers are passed as kernel arguments: nothing is copied from host memory, so nothing synchronises, and a
// captured graph contains them.
Error write_offsets(const int64_t* counts, int64_t steps, int64_t* offsets, Stream stream);

// h before each time step of each row, [N, width] in the order of y: the operand of R. Zeros in padding. `initial`,
// `restart`: h at the first step and at rows.reset, [B, width] or null for zeros; `bytes`: of an element, 2, 4 or 8.
Error hidden_before(const Rows& rows, const void* y, const void* initial, const void* restart, void* out, int64_t width,
                    int bytes, Stream stream);

// The virtual architecture (80, 90) that the kernels for the current device were compiled for
Error compiled_for(int* architecture);
// All of them: "sm_80, sm_90"
const char* architectures();

// The n-th element written by hidden_before, counted over all steps, rows and units
template <class Word>
FASTRNN_FN void copy_before(const Rows& rows, const Word* y, const Word* initial, const Word* restart, Word* out,
                            int64_t width, int64_t n) {
  const int64_t u = n % width, b = n / width % rows.batch, k = n / width / rows.batch;
  if (k >= rows.steps) return;
  const int64_t t = rows.step(k);
  if (!rows.exists(t, b)) return;
  Word value = 0;
  if (rows.active(t, b)) {
    if (rows.continues(k, b)) {
      value = y[rows.row(rows.step(k - 1), b) * width + u];
    } else if (const Word* first = k > 0 && rows.anew(k, b) ? restart : initial; first != nullptr) {
      value = first[b * width + u];
    }
  }
  out[rows.row(t, b) * width + u] = value;
}

}  // namespace fastrnn::cuda
