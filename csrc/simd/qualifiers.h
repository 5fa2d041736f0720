// Qualifiers of functions that are compiled for every target: each CPU instruction set, and the GPU.
#pragma once

#if defined(__CUDACC__)
#define FASTRNN_FN __host__ __device__ __forceinline__
#else
#define FASTRNN_FN inline __attribute__((always_inline))
#endif

// Work at the ends of sequences, called from several places: one copy is enough for it.
#define FASTRNN_RARE __attribute__((noinline))

#if defined(__CUDACC__)
#define FASTRNN_UNROLL _Pragma("unroll")
#else
#define FASTRNN_UNROLL _Pragma("GCC unroll 64")
#endif

// Every instruction set has its own namespace, so that the linker never merges functions of different sets.
#ifndef FASTRNN_ISA_NAME
#define FASTRNN_ISA_NAME baseline
#endif
#define FASTRNN_NAMESPACE fastrnn::FASTRNN_ISA_NAME
