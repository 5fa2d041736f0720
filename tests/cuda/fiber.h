// Call stacks for the threads of emulated blocks, all on one thread of the operating system.
#pragma once

#include <stddef.h>

#include <memory>
#include <vector>

namespace fastrnn::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next resume() call entry(argument) on an empty stack. Previous contents of the stack are discarded.
  void start(void (*entry)(void*), void* argument);
  // Runs until suspend() or the end of entry; must not be called inside a fiber.
  void resume();
  // Inside a fiber: returns to the caller of resume().
  void suspend();

 private:
  struct Context;
  static void begin();

  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* memory_ = nullptr;  // a guard page, then the stack
  char* top_ = nullptr;
  std::unique_ptr<Context> context_;
};

// Later launches reuse fibers, because allocating a stack takes two system calls.
class FiberPool {
 public:
  Fiber* take();
  void give(Fiber* fiber) { free_.push_back(fiber); }

 private:
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> free_;
};

}  // namespace fastrnn::emulator
