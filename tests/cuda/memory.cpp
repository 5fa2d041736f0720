#include "memory.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace fastrnn::emulator {

Memory::Memory() {
  void* p = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(p);
}

Memory::~Memory() { munmap(base_, kBytes); }

Buffer& Memory::allocate(const std::string& name, int64_t bytes, int64_t alignment, int64_t block) {
  char* last = buffers_.empty() ? base_ : buffers_.back()->end();
  auto at = reinterpret_cast<uintptr_t>(last) + kZone;
  const auto period = static_cast<uintptr_t>(2 * alignment);
  at = (at + period - 1) / period * period + static_cast<uintptr_t>(alignment);
  char* begin = reinterpret_cast<char*>(at);
  if (begin + bytes + kZone > base_ + kBytes) throw std::bad_alloc();
  memset(last, kSentinel, static_cast<size_t>(begin - last));
  memset(begin, 0xff, static_cast<size_t>(bytes));
  memset(begin + bytes, kSentinel, kZone);
  buffers_.push_back(std::make_unique<Buffer>(Buffer{begin, bytes, name, false, block, false, nullptr}));
  return *buffers_.back();
}

void Memory::shrink(size_t count) {
  if (count < buffers_.size()) buffers_.resize(count);
}

Buffer* Memory::find(const void* p) {
  const auto after = std::upper_bound(buffers_.begin(), buffers_.end(), static_cast<const char*>(p),
                                      [](const char* a, const auto& b) { return a < b->begin; });
  if (after == buffers_.begin()) return nullptr;
  Buffer* buffer = std::prev(after)->get();
  return p < buffer->end() ? buffer : nullptr;
}

std::string Memory::damaged(size_t first) const {
  for (size_t k = first; k < buffers_.size(); ++k) {
    const Buffer& buffer = *buffers_[k];
    const char* before = k == 0 ? base_ : buffers_[k - 1]->end();
    const auto intact = [](const char* from, const char* to) {
      return std::all_of(from, to, [](char c) { return static_cast<unsigned char>(c) == kSentinel; });
    };
    if (!intact(before, buffer.begin) || !intact(buffer.end(), buffer.end() + kZone)) return buffer.name;
  }
  return {};
}

Memory& memory() {
  static Memory instance;
  return instance;
}

}  // namespace fastrnn::emulator
