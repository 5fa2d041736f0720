// Steps, rows and units to visit, and their assignment to threads.
#pragma once

#include "cpu/args.h"
#include "cpu/pack.h"
#include "cpu/plan.h"
#include "cpu/team.h"

namespace FASTRNN_NAMESPACE {

// Steps in visiting order, and the rows that begin, continue or end between two of them
struct Steps {
  const Sequence& seq;
  int64_t at(int64_t n) const { return seq.reverse ? seq.steps - 1 - n : n; }
  // Number of rows of the n-th visited step; zero before the first and after the last.
  int64_t rows(int64_t n) const { return n < 0 || n >= seq.steps ? 0 : seq.counts[at(n)]; }
  int64_t offset(int64_t n) const { return seq.offsets[at(n)]; }
  // Return true if a new segment of row i begins between visits n-1 and n, both of which have the row. A segment's flag
  // is at its first step in time, which in reverse is the step visited before the border.
  bool reset(int64_t n, int64_t i) const {
    return seq.reset != nullptr && seq.reset[(seq.reverse ? offset(n - 1) : offset(n)) + i] != 0;
  }
};

// Copies or widens/rounds `n` values.
template <class From, class To>
FASTRNN_FN void copy(const From* from, To* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) narrow(widen(from[k]), to + k);
}

// Work of one thread: its rows of all units, or all rows of its units
struct Part {
  Range rows;
  Range groups;            // of hidden units
  Range projected_groups;  // of h, which is narrower with a projection
  bool alone;              // no other thread reads this one's results
};

// The first row of part `rank` of `size` equal parts of the work. Rows are sorted by length, the longest first.
inline int64_t first_row(const Sequence& seq, int64_t rank, int64_t size) {
  if (seq.counts[seq.steps - 1] == seq.batch) return seq.batch * rank / size;
  if (rank == size) return seq.batch;
  int64_t total = 0, done = 0, row = 0, length = seq.steps;
  for (int64_t t = 0; t < seq.steps; ++t) total += seq.counts[t];
  for (; row < seq.batch && done < total * rank / size; ++row) {
    while (length > 0 && seq.counts[length - 1] <= row) --length;
    done += length;
  }
  return row;
}

inline int64_t rows_of_a_thread(const Plan& plan, const Sequence& seq) {
  return plan.split == Split::kRows ? divide_up(seq.batch, plan.threads) : seq.batch;
}

inline Part whole(const Sequence& seq, int64_t groups, int64_t projected) {
  return {{0, seq.batch}, {0, groups}, {0, projected}, true};
}

inline Part part_of(const Plan& plan, const Sequence& seq, const Member& member, int64_t groups, int64_t projected) {
  if (plan.split == Split::kUnits && member.size > 1) {
    return {{0, seq.batch}, share(groups, member.rank, member.size), share(projected, member.rank, member.size), false};
  }
  return {{first_row(seq, member.rank, member.size), first_row(seq, member.rank + 1, member.size)},
          {0, groups},
          {0, projected},
          true};
}

// The barrier between two stages of a step, of which one reads the results of the other. Returns false if nothing is
// left to do.
inline bool meet(Member& member, const Sequence& seq, Part& part, int64_t groups, int64_t projected) {
  if (part.alone) return true;
  const Next next = member.wait();
  if (next == Next::kAlone) part = whole(seq, groups, projected);
  return next != Next::kLeave;
}

}  // namespace FASTRNN_NAMESPACE
