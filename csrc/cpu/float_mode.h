// Rounding mode, and flushing of subnormal numbers to zero. Both are per-thread states, and torch.set_flush_denormal
// changes only the thread that calls it.
#pragma once

#include <stdint.h>

namespace fastrnn {

// Sets this mode for the calling thread while alive.
class FloatMode {
 public:
  explicit FloatMode(uint64_t mode) : before_(current()), changed_(mode != before_) {
    if (changed_) set(mode);
  }
  ~FloatMode() {
    if (changed_) set(before_);
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

  // The calling thread's mode with subnormal results flushed to zero (on ARM also operands, which has no separate
  // switch). A processor may need 150 cycles for each: a gradient that vanishes over hundreds of steps would be slow on
  // its way to zero. Subnormal inputs are read as they are.
  static uint64_t flushing() {
#if defined(__x86_64__)
    constexpr uint64_t kResults = 0x8000;
    return current() | kResults;
#elif defined(__aarch64__)
    constexpr uint64_t kBoth = uint64_t{1} << 24;
    return current() | kBoth;
#else
    return current();
#endif
  }

  static uint64_t current() {
#if defined(__x86_64__)
    constexpr unsigned kHappened = 0x3f;  // exception flags, which remain those of the thread
    return __builtin_ia32_stmxcsr() & ~kHappened;
#elif defined(__aarch64__)
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
  }

 private:
  static void set(uint64_t mode) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(static_cast<unsigned>(mode));
#elif defined(__aarch64__)
    asm volatile("msr fpcr, %0" : : "r"(mode) : "memory");
#else
    (void)mode;
#endif
  }

  const uint64_t before_;
  const bool changed_;
};

}  // namespace fastrnn
