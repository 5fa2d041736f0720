// Precision of float32 products that torch's settings allow; only here are they read.
#pragma once

namespace fastrnn {

// Number of bfloat16 parts that the factors of a float32 product may be rounded to (cpu/parts.h); 0: float32 itself.
//   torch.backends.mkldnn.rnn.fp32_precision, if it (or mkldnn's or torch's setting for all operators) is set
//   otherwise that of mkldnn.matmul, which torch.set_float32_matmul_precision sets too
// "tf32", set by "high", allows two parts; "bf16" ("medium") one. Read at each call, as torch does.
int parts_allowed();

}  // namespace fastrnn
