// Which optional instruction sets this compiler and system know.
#pragma once

// Products of bfloat16 on vectors.
#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 10))
#define FASTRNN_HAS_AVX512_BF16 1
#else
#define FASTRNN_HAS_AVX512_BF16 0
#endif

// The matrix unit of x86-64 (AMX) has to be asked for, which is known how to do on Linux.
#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define FASTRNN_HAS_AMX 1
#else
#define FASTRNN_HAS_AMX 0
#endif
