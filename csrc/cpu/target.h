// Optional instruction sets that this compiler and system support.
#pragma once

// bfloat16 products on SIMD vectors
#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 10))
#define FASTRNN_HAS_AVX512_BF16 1
#else
#define FASTRNN_HAS_AVX512_BF16 0
#endif

// AMX, the matrix unit of x86-64, must be requested from the system; implemented for Linux.
#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define FASTRNN_HAS_AMX 1
#else
#define FASTRNN_HAS_AMX 0
#endif
