// Division of a depth chunk of a large product among threads.
#pragma once

#include "cpu/pack.h"

namespace FASTRNN_NAMESPACE {

class Chunks {
 public:
  // Runs one chunk, called by every member of the team: first its panels are packed, then its pieces are computed; free
  // members take the next one. Returns false if nothing is left to do for this member. `alone`: initially true in a
  // team of one.
  template <class LayOut, class Compute>
  bool run(Member& member, bool& alone, int64_t panels, int64_t pieces, const LayOut& lay_out, const Compute& compute) {
    for (int64_t p = next_panel_++; p < panels; p = next_panel_++) lay_out(p);
    if (!meet(member, alone)) return false;
    if (member.rank == 0) next_panel_ = 0;  // no member uses it until the next barrier
    for (int64_t p = next_piece_++; p < pieces; p = next_piece_++) compute(p);
    if (!meet(member, alone)) return false;
    if (member.rank == 0) next_piece_ = 0;
    return true;
  }

 private:
  static bool meet(Member& member, bool& alone) {
    if (alone) return true;
    const Next next = member.wait();
    alone = next == Next::kAlone;
    return next != Next::kLeave;
  }

  std::atomic<int64_t> next_panel_{0}, next_piece_{0};
};

}  // namespace FASTRNN_NAMESPACE
