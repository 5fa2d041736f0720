#include "cpu/workspace.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>

namespace fastrnn {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kFence = 64;
constexpr unsigned char kPoison = 0xff;    // NaN in every dtype
constexpr unsigned char kSentinel = 0xa5;  // differs from the poison, which is only written inside a block
std::atomic<bool> poisoned{false};

}  // namespace

void set_poison(bool on) { poisoned = on; }
bool poison() { return poisoned; }

void prefer_large_pages(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr size_t kLeast = size_t{8} << 20, kPage = size_t{2} << 20;
  if (bytes < kLeast) return;
  const size_t begin = (reinterpret_cast<size_t>(data) + kPage - 1) / kPage * kPage;
  const size_t end = (reinterpret_cast<size_t>(data) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#else
  (void)data, (void)bytes;
#endif
}

Workspace::~Workspace() {
  free(base_);
  if (ends_ != usual_) free(ends_);
}

size_t Workspace::add(int64_t count, size_t size) {
  if (blocks_ == most_) {
    auto* more = static_cast<size_t*>(malloc(2 * sizeof(size_t) * static_cast<size_t>(most_)));
    failed_ = failed_ || more == nullptr;
    if (failed_) return 0;
    memcpy(more, ends_, sizeof(size_t) * static_cast<size_t>(most_));
    if (ends_ != usual_) free(ends_);
    ends_ = more;
    most_ *= 2;
  }
  const size_t offset = bytes_;
  const size_t end = offset + static_cast<size_t>(count) * size;
  ends_[blocks_++] = end;
  bytes_ = (end + kFence + kAlignment - 1) / kAlignment * kAlignment;
  return offset;
}

bool Workspace::allocate() {
  void* memory = nullptr;
  if (failed_) return false;
  if (bytes_ == 0) return true;
  if (posix_memalign(&memory, kAlignment, bytes_) != 0) return false;
  base_ = static_cast<char*>(memory);
  prefer_large_pages(base_, bytes_);
  if (poison()) {
    memset(base_, kPoison, bytes_);
    for (int k = 0; k < blocks_; ++k) memset(base_ + ends_[k], kSentinel, kFence);
  }
  return true;
}

bool Workspace::intact() const {
  if (!poison() || base_ == nullptr) return true;
  for (int k = 0; k < blocks_; ++k) {
    for (size_t b = 0; b < kFence; ++b) {
      if (static_cast<unsigned char>(base_[ends_[k] + b]) != kSentinel) return false;
    }
  }
  return true;
}

}  // namespace fastrnn
