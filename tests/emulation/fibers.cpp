#include "fibers.h"

#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#ifdef EMULATION_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif
#ifdef EMULATION_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
}
#endif

// Leaves one stack for another. swapcontext would ask the system for the signal mask each time.
#ifdef __x86_64__
using Context = void*;  // the stack pointer; everything else lies on the stack
extern "C" void emulation_switch(Context* from, Context to);
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
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
.size emulation_switch, . - emulation_switch
)");
static void switch_context(Context& from, Context& to) {
  emulation_switch(&from, to);
}
static void make_context(Context& context, char* stack, size_t size, void (*start)()) {
  // As after a call: the six registers, the address to return to, and 8 bytes to where the stack is aligned.
  void** top = reinterpret_cast<void**>(stack + size) - 2;
  *top = reinterpret_cast<void*>(start);
  context = top - 6;
}
#else
using Context = ucontext_t;
static void switch_context(Context& from, Context& to) {
  swapcontext(&from, &to);
}
static void make_context(Context& context, char* stack, size_t size, void (*start)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, start, 0);
}
#endif

namespace emulation {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  Context context;
  State state;
  Position position;
  unsigned mask;         // waited for in a warp
  uint64_t given;        // to the other lanes
  uint64_t view[kWarp];  // what they gave
  void* sanitizer;       // its fiber for ThreadSanitizer, its fake stack for AddressSanitizer
};

Fiber fibers[kMaxThreads];
Context scheduler;
[[maybe_unused]] void* scheduler_sanitizer;
[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_stack_size;
char* stacks;
int count, current, waiting;
unsigned char* shared_memory;
size_t shared_size;
void (*the_body)(void*);
void* the_argument;
char block_sync, start_sync, end_sync, warp_sync[kMaxThreads / kWarp];

void enter(int next) {
  current = next;
  Fiber& f = fibers[next];
#ifdef EMULATION_TSAN
  __tsan_switch_to_fiber(f.sanitizer, 1);  // 1: the switch orders nothing
#endif
#ifdef EMULATION_ASAN
  __sanitizer_start_switch_fiber(&scheduler_sanitizer, stacks + next * kStack, kStack);
#endif
  switch_context(scheduler, f.context);
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(scheduler_sanitizer, nullptr, nullptr);
#endif
}

// Back to the scheduler, until it comes round to this fiber again.
void leave(bool for_good) {
  Fiber& f = fibers[current];
#ifdef EMULATION_TSAN
  __tsan_switch_to_fiber(scheduler_sanitizer, 1);
#endif
#ifdef EMULATION_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &f.sanitizer, scheduler_stack, scheduler_stack_size);
#endif
  (void)for_good;
  switch_context(f.context, scheduler);
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(f.sanitizer, nullptr, nullptr);
#endif
}

void trampoline() {
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  __tsan_acquire(&start_sync);
  the_body(the_argument);
  __tsan_release(&end_sync);
  fibers[current].state = State::kDone;
  leave(true);
}

[[noreturn]] void stuck() {
  const Index b = fibers[0].position.block;
  std::fprintf(stderr, "emulation: block (%u, %u, %u) is stuck at a barrier: ", b.x, b.y, b.z);
  int at_block = 0, at_warp = 0, done = 0;
  for (int i = 0; i < count; ++i) {
    at_block += fibers[i].state == State::kAtBlockBarrier;
    at_warp += fibers[i].state == State::kAtWarpBarrier;
    done += fibers[i].state == State::kDone;
  }
  std::fprintf(stderr, "%d threads at __syncthreads, %d in a warp operation, %d ended\n", at_block, at_warp,
               done);
  std::abort();
}

void run_block() {
  std::memset(shared_memory, 0xcd, shared_size);
  __tsan_release(&start_sync);
  waiting = 0;
  for (int i = 0; i < count; ++i) {
    Fiber& f = fibers[i];
    f.state = State::kReady;
    make_context(f.context, stacks + i * kStack, kStack, trampoline);
#ifdef EMULATION_TSAN
    if (!f.sanitizer) f.sanitizer = __tsan_create_fiber(0);  // serves every later block too
#endif
  }
  for (int done = 0; done < count;) {
    bool moved = false;
    done = 0;
    for (int i = 0; i < count; ++i) {
      if (fibers[i].state == State::kReady) {
        enter(i);
        moved = true;
      }
      done += fibers[i].state == State::kDone;
    }
    if (!moved && done < count) stuck();
  }
  __tsan_acquire(&end_sync);
}

}  // namespace

const Position& position() {
  return fibers[current].position;
}

unsigned char* dynamic_shared() {
  return shared_memory;
}

void run_grid(Index grid, Index block, size_t shared_bytes, void (*body)(void*), void* argument) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (!stacks) {
    void* memory = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<char*>(memory);
  }
#ifdef EMULATION_TSAN
  scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  count = static_cast<int>(block.x * block.y * block.z);
  the_body = body;
  the_argument = argument;
  shared_memory = static_cast<unsigned char*>(std::malloc(shared_bytes));
  shared_size = shared_bytes;
  const char* order = std::getenv("SSD_OPS_EMULATION_ORDER");
  const bool reverse = order && std::strcmp(order, "reverse") == 0;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t n = 0; n < blocks; ++n) {
    const uint64_t b = reverse ? blocks - 1 - n : n;
    const Index at = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                      static_cast<unsigned>(b / grid.x / grid.y)};
    for (int i = 0; i < count; ++i) {
      const unsigned t = static_cast<unsigned>(i);
      fibers[i].position = {{t % block.x, t / block.x % block.y, t / block.x / block.y}, at, block, grid};
    }
    run_block();
  }
  std::free(shared_memory);
}

void block_barrier() {
  __tsan_release(&block_sync);
  if (++waiting < count) {
    fibers[current].state = State::kAtBlockBarrier;
    leave(false);
  } else {
    waiting = 0;
    for (int i = 0; i < count; ++i)
      if (fibers[i].state == State::kAtBlockBarrier) fibers[i].state = State::kReady;
  }
  __tsan_acquire(&block_sync);
}

const uint64_t* warp_exchange(unsigned mask, uint64_t value) {
  const int warp = current / kWarp, first = warp * kWarp;
  Fiber& mine = fibers[current];
  if (!(mask >> (current - first) & 1)) {
    std::fprintf(stderr, "emulation: a lane outside its own mask %08x\n", mask);
    std::abort();
  }
  __tsan_release(&warp_sync[warp]);
  mine.mask = mask;
  mine.given = value;
  mine.state = State::kAtWarpBarrier;
  bool complete = true;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& f = fibers[first + lane];
    complete &= first + lane < count && f.state == State::kAtWarpBarrier && f.mask == mask;
  }
  if (complete) {
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(mask >> lane & 1)) continue;
      Fiber& f = fibers[first + lane];
      for (int other = 0; other < kWarp; ++other) f.view[other] = fibers[first + other].given;
      f.state = State::kReady;
    }
  } else {
    leave(false);
  }
  __tsan_acquire(&warp_sync[warp]);
  return mine.view;
}

}  // namespace emulation

namespace {

std::mutex attributes_mutex;
std::map<const void*, int> shared_attributes;
int lowered_attributes = 0;
int launches_until_failure = 0;  // 0: none is to fail

}  // namespace

void emulation::set_shared_attribute(const void* kernel, int bytes) {
  const std::lock_guard lock(attributes_mutex);
  int& now = shared_attributes[kernel];
  lowered_attributes += bytes < now;
  now = bytes;
}

bool emulation::may_launch(const void* kernel, size_t shared_bytes) {
  const std::lock_guard lock(attributes_mutex);
  if (launches_until_failure > 0 && --launches_until_failure == 0) return false;
  constexpr size_t kWithoutAsking = 48 * 1024;
  return shared_bytes <= kWithoutAsking || shared_bytes <= static_cast<size_t>(shared_attributes[kernel]);
}

// For the tests.
extern "C" __attribute__((visibility("default"))) void emulation_fail_launch(int number) {
  launches_until_failure = number;
}
extern "C" __attribute__((visibility("default"))) int emulation_lowered_attributes() {
  return lowered_attributes;
}

// torch without CUDA has no current CUDA stream; the emulation has only one.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
