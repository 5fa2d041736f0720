// The emulated GPU's memory: one address range of buffers in a row, with sentinels between them.
#pragma once

#include <stdint.h>

#include <memory>
#include <string>
#include <vector>

namespace fastrnn::emulator {

struct Cell;  // memory_check.cpp: last accesses of two bytes

struct Buffer {
  char* begin;
  int64_t bytes;
  std::string name;
  bool written;   // else it holds NaN and must be written before it is read
  int64_t block;  // the block whose shared memory it is, or -1
  bool gone;      // its block has exited
  std::shared_ptr<Cell[]> cells;

  char* end() const { return begin + bytes; }
};

class Memory {
 public:
  Memory();
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // `alignment`: the address is a multiple of it and of nothing larger. Filled with bytes of 0xff, NaN in every dtype.
  // Throws std::bad_alloc.
  Buffer& allocate(const std::string& name, int64_t bytes, int64_t alignment, int64_t block = -1);
  // Removes the buffers from the count-th on.
  void shrink(size_t count);
  size_t count() const { return buffers_.size(); }

  bool contains(const void* p) const { return p >= base_ && p < base_ + kBytes; }
  // Returns the buffer that contains this byte, or null.
  Buffer* find(const void* p);
  // Returns the name of a buffer, from the first-th on, whose sentinels were overwritten; else empty.
  std::string damaged(size_t first = 0) const;

 private:
  static constexpr int64_t kBytes = int64_t(1) << 30, kZone = 256;
  static constexpr unsigned char kSentinel = 0xa5;

  char* base_;
  std::vector<std::unique_ptr<Buffer>> buffers_;  // in the order of their addresses
};

Memory& memory();

}  // namespace fastrnn::emulator
