// Which instructions compute products of parts (cpu/parts.h) for the instruction set of a unit, if this compiler knows
// them: FASTRNN_HAS_TILES, and FASTRNN_TILES_ON_VECTORS for those on vectors. FASTRNN_EMULATE_MATRIX_UNIT has the
// matrix unit's kernels compute on vectors, to test what is around its instructions without one.
#pragma once

#include "cpu/target.h"

#if defined(FASTRNN_ISA_AMX) || defined(FASTRNN_ISA_AVX512_BF16)
#define FASTRNN_ISA_AVX512 1  // all that is not about parts
#define FASTRNN_WANTS_TILES 1
#endif
#if defined(FASTRNN_ISA_AVX512_BF16) || (defined(FASTRNN_ISA_AMX) && defined(FASTRNN_EMULATE_MATRIX_UNIT))
#define FASTRNN_TILES_ON_VECTORS 1
#endif
#if defined(FASTRNN_TILES_ON_VECTORS) ? FASTRNN_HAS_AVX512_BF16 : (defined(FASTRNN_WANTS_TILES) && FASTRNN_HAS_AMX)
#define FASTRNN_HAS_TILES 1
#endif
