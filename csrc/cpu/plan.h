// Division of a sequence's work among threads; decided only here.
#pragma once

#include "cpu/args.h"

namespace fastrnn {

struct Plan {
  Split split;  // kNone, kRows or kUnits
  int threads;
};

// Product of one time step: rows × (depth → columns), with weights of `element` bytes each
struct StepWork {
  int64_t rows, depth, columns;
  int64_t groups;  // of units: a thread has whole ones
  int element;
  int barriers;      // barriers a step needs when units are split
  double speed = 1;  // speed of the multiply-adds relative to float32
};

// Size of a core's own L2 cache
FASTRNN_SHARED double near_cache_bytes();

FASTRNN_SHARED Plan make_plan(const Sequence& seq, const StepWork& work);

}  // namespace fastrnn
