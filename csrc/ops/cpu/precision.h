// The precision of float32 products that torch's settings allow: the one place where they are read.
#pragma once

namespace fastrnn {

// How many bfloat16 parts the factors of a float32 product may be rounded to (cpu/parts.h); 0: none, float32 itself.
//   torch.backends.mkldnn.rnn.fp32_precision, if it (or mkldnn's or torch's setting for all operators) says something
//   otherwise that of mkldnn.matmul, which torch.set_float32_matmul_precision sets too
// "tf32", which is what "high" sets, allows two parts; "bf16" ("medium") one. Read anew at each call, as torch does.
int parts_allowed();

}  // namespace fastrnn
