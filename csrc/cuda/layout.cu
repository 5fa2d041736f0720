#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "cuda/layout.h"

namespace fastrnn::cuda {

namespace {

constexpr int kChunk = 480;  // kernel arguments are limited to 4 KB
constexpr int kBlock = 256;

struct Chunk {
  int64_t values[kChunk];
};

__global__ void store_chunk(const __grid_constant__ Chunk chunk, int count, int64_t* to) {
  for (int k = static_cast<int>(threadIdx.x); k < count; k += static_cast<int>(blockDim.x)) to[k] = chunk.values[k];
}

template <class Word>
__global__ void copy_all_before(const Rows rows, const Word* y, const Word* initial, const Word* restart, Word* out,
                                int64_t width) {
  copy_before(rows, y, initial, restart, out, width, static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x);
}

template <class Word>
Error launch_before(const Rows& rows, const void* y, const void* initial, const void* restart, void* out, int64_t width,
                    Stream stream) {
  const int64_t blocks = (rows.steps * rows.batch * width + kBlock - 1) / kBlock;
  copy_all_before<<<static_cast<unsigned>(blocks), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
      rows, static_cast<const Word*>(y), static_cast<const Word*>(initial), static_cast<const Word*>(restart),
      static_cast<Word*>(out), width);
  return cudaGetLastError();
}

}  // namespace

Error write_offsets(const int64_t* counts, int64_t steps, int64_t* offsets, Stream stream) {
  int64_t row = 0;
  for (int64_t from = 0; from <= steps; from += kChunk) {
    Chunk chunk;
    const int count = static_cast<int>(std::min<int64_t>(kChunk, steps + 1 - from));
    for (int k = 0; k < count; ++k) {
      chunk.values[k] = row;
      if (from + k < steps) row += counts[from + k];
    }
    store_chunk<<<1, kBlock, 0, static_cast<cudaStream_t>(stream)>>>(chunk, count, offsets + from);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

Error hidden_before(const Rows& rows, const void* y, const void* initial, const void* restart, void* out, int64_t width,
                    int bytes, Stream stream) {
  switch (bytes) {
    case 2:
      return launch_before<uint16_t>(rows, y, initial, restart, out, width, stream);
    case 4:
      return launch_before<uint32_t>(rows, y, initial, restart, out, width, stream);
    case 8:
      return launch_before<uint64_t>(rows, y, initial, restart, out, width, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

Error compiled_for(int* architecture) {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&store_chunk));
  *architecture = error == cudaSuccess ? attributes.ptxVersion : 0;
  return error;
}

const char* architectures() {
  static const std::string text = [] {
    std::string names;
    for (int number : {__CUDA_ARCH_LIST__}) names += (names.empty() ? "sm_" : ", sm_") + std::to_string(number / 10);
    return names;
  }();
  return text.c_str();
}

}  // namespace fastrnn::cuda
