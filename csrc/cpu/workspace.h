// Scratch memory of one call: first measured, then allocated in one piece. No exceptions: a caller checks allocate().
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cpu/args.h"

namespace fastrnn {

// While true, scratch memory is filled with NaN before use and fenced by sentinels that are checked at the end (tests).
FASTRNN_SHARED void set_poison(bool on);
FASTRNN_SHARED bool poison();

// Asks the system for large pages for an array that is about to be written for the first time. With ordinary pages,
// each 4 KiB of new memory interrupt whoever writes them first.
FASTRNN_SHARED void prefer_large_pages(void* data, size_t bytes);

class FASTRNN_SHARED Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Adds a block of `count` elements of `size` bytes and returns its offset (64-byte aligned, fenced).
  size_t add(int64_t count, size_t size);
  // Allocates the memory of all blocks; returns false if that fails.
  bool allocate();
  template <class C>
  C* at(size_t offset) const {
    return reinterpret_cast<C*>(base_ + offset);
  }
  // Returns false if anything was written past the end of a block. Always true without poison.
  bool intact() const;

 private:
  static constexpr int kUsualBlocks = 32;  // a custom cell with many products has more
  char* base_ = nullptr;
  size_t bytes_ = 0;
  size_t usual_[kUsualBlocks];
  size_t* ends_ = usual_;
  int blocks_ = 0, most_ = kUsualBlocks;
  bool failed_ = false;
};

}  // namespace fastrnn
