#include "fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__ELF__) || !(defined(__x86_64__) || defined(__aarch64__))
#define FASTRNN_UCONTEXT 1
#include <ucontext.h>
#endif

// swapcontext() makes a system call for the signal mask each time, which costs more than most of the work of a fiber
// between two switches. This saves only what the calling convention requires a function to preserve.
#if !defined(FASTRNN_UCONTEXT)
extern "C" void fastrnn_fiber_switch(void** from, void* to) __attribute__((visibility("hidden")));
#endif
#if defined(FASTRNN_UCONTEXT)
#elif defined(__x86_64__)
asm(R"(
.text
.hidden fastrnn_fiber_switch
.globl fastrnn_fiber_switch
.type fastrnn_fiber_switch, @function
fastrnn_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastrnn_fiber_switch, .-fastrnn_fiber_switch
)");
#else
asm(R"(
.text
.hidden fastrnn_fiber_switch
.globl fastrnn_fiber_switch
.type fastrnn_fiber_switch, %function
fastrnn_fiber_switch:
  stp x19, x20, [sp, #-160]!
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
.size fastrnn_fiber_switch, .-fastrnn_fiber_switch
)");
#endif

namespace fastrnn::emulator {

namespace {

constexpr size_t kStack = 64 * 1024;
Fiber* beginning = nullptr;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

struct Fiber::Context {
#if defined(FASTRNN_UCONTEXT)
  ucontext_t mine, caller;
#else
  void *mine, *caller;
#endif
};

Fiber::Fiber() : context_(new Context) {
  static size_t made = 0;
  void* memory = mmap(nullptr, page() + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page(), PROT_NONE) != 0) abort();
  memory_ = static_cast<char*>(memory);
  // Different offsets within a page, because a few hundred stacks at one offset would share a few cache sets.
  top_ = memory_ + page() + kStack - made++ % 16 * 256;
}

Fiber::~Fiber() { munmap(memory_, page() + kStack); }

void Fiber::begin() {
  Fiber* fiber = beginning;
  fiber->entry_(fiber->argument_);
  fiber->suspend();
  abort();  // a fiber that has ended must not be resumed
}

#if defined(FASTRNN_UCONTEXT)

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  getcontext(&context_->mine);
  context_->mine.uc_stack.ss_sp = memory_ + page();
  context_->mine.uc_stack.ss_size = kStack;
  context_->mine.uc_link = nullptr;
  makecontext(&context_->mine, &Fiber::begin, 0);
}
void Fiber::resume() {
  beginning = this;
  swapcontext(&context_->caller, &context_->mine);
}
void Fiber::suspend() { swapcontext(&context_->mine, &context_->caller); }

#else

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  const auto code = reinterpret_cast<uintptr_t>(&Fiber::begin);
#if defined(__x86_64__)
  // Six registers, the address for `ret`, and null in place of a caller's address.
  uintptr_t frame[8] = {0, 0, 0, 0, 0, 0, code, 0};
#else
  uintptr_t frame[20] = {};
  frame[11] = code;
#endif
  char* at = top_ - sizeof(frame);
  memcpy(at, frame, sizeof(frame));
  context_->mine = at;
}
void Fiber::resume() {
  beginning = this;
  fastrnn_fiber_switch(&context_->caller, context_->mine);
}
void Fiber::suspend() { fastrnn_fiber_switch(&context_->mine, context_->caller); }

#endif

Fiber* FiberPool::take() {
  if (free_.empty()) {
    all_.push_back(std::make_unique<Fiber>());
    return all_.back().get();
  }
  Fiber* fiber = free_.back();
  free_.pop_back();
  return fiber;
}

}  // namespace fastrnn::emulator
