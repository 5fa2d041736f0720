// Instructions for products of parts (cpu/parts.h) in the instruction set of a unit, if this compiler supports them:
// FASTRNN_HAS_TILES, and FASTRNN_TILES_ON_VECTORS for SIMD vectors. FASTRNN_EMULATE_MATRIX_UNIT makes the AMX kernels
// compute on vectors, to test the code around its instructions without AMX.
#pragma once

#include "cpu/target.h"

#if defined(FASTRNN_ISA_AMX) || defined(FASTRNN_ISA_AVX512_BF16)
#define FASTRNN_ISA_AVX512 1  // everything else
#define FASTRNN_WANTS_TILES 1
#endif
#if defined(FASTRNN_ISA_AVX512_BF16) || (defined(FASTRNN_ISA_AMX) && defined(FASTRNN_EMULATE_MATRIX_UNIT))
#define FASTRNN_TILES_ON_VECTORS 1
#endif
#if defined(FASTRNN_TILES_ON_VECTORS) ? FASTRNN_HAS_AVX512_BF16 : (defined(FASTRNN_WANTS_TILES) && FASTRNN_HAS_AMX)
#define FASTRNN_HAS_TILES 1
#endif
