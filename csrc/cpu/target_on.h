// Begins the region compiled for an instruction set (FASTRNN_ISA_…), included after all standard headers; target_off.h
// ends it. Neither has an include guard. After tiles_of.h: a compiler without the instructions for products of parts
// rejects their names, and compiles the code around the kernels as for AVX-512.
#if defined(FASTRNN_HAS_TILES) && defined(FASTRNN_TILES_ON_VECTORS)
#define FASTRNN_TARGET "avx512bf16,avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#define FASTRNN_TARGET_GCC FASTRNN_TARGET ",prefer-vector-width=512"
#elif defined(FASTRNN_HAS_TILES)
#define FASTRNN_TARGET "amx-tile,amx-bf16,avx512bf16,avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#define FASTRNN_TARGET_GCC FASTRNN_TARGET ",prefer-vector-width=512"
#elif defined(FASTRNN_ISA_AVX512)
#define FASTRNN_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#define FASTRNN_TARGET_GCC FASTRNN_TARGET ",prefer-vector-width=512"
#elif defined(FASTRNN_ISA_AVX2)
#define FASTRNN_TARGET "avx2,fma,f16c"
#define FASTRNN_TARGET_GCC FASTRNN_TARGET
#endif

#define FASTRNN_PRAGMA_(text) _Pragma(#text)
#define FASTRNN_PRAGMA(text) FASTRNN_PRAGMA_(text)
#ifdef FASTRNN_TARGET
#if defined(__clang__)
FASTRNN_PRAGMA(clang attribute push(__attribute__((target(FASTRNN_TARGET))), apply_to = function))
#else
#pragma GCC push_options
FASTRNN_PRAGMA(GCC target(FASTRNN_TARGET_GCC))
#endif
#endif
