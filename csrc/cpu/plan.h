// How the work of a sequence is shared among threads: the one place where it is decided.
#pragma once

#include "cpu/args.h"

namespace fastrnn {

struct Plan {
  Split split;  // kNone, kRows or kUnits
  int threads;
};

// One step's product: rows × (depth → columns), its weights `element` bytes each.
struct StepWork {
  int64_t rows, depth, columns;
  int64_t groups;  // of units: a thread has whole ones
  int element;
  int barriers;      // barriers a step needs when units are split
  double speed = 1;  // of the multiply-adds, float32 arithmetic being 1
};

// Size of the L2 cache, which each core has for itself.
double near_cache_bytes();

FASTRNN_SHARED Plan make_plan(const Sequence& seq, const StepWork& work);

}  // namespace fastrnn
