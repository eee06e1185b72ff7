#include "fibers.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#ifdef EMULATION_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
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

namespace emulation {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  State state;
  Position position;
  unsigned mask;           // waited for in a warp
  uint64_t given;          // to the other lanes
  uint64_t view[kWarp];    // what they gave
  void* sanitizer;         // its fiber for ThreadSanitizer, its fake stack for AddressSanitizer
};

Fiber fibers[kMaxThreads];
ucontext_t scheduler;
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
  swapcontext(&scheduler, &f.context);
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
  swapcontext(&f.context, &scheduler);
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
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + i * kStack;
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, trampoline, 0);
#ifdef EMULATION_TSAN
    f.sanitizer = __tsan_create_fiber(0);
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
#ifdef EMULATION_TSAN
  for (int i = 0; i < count; ++i) __tsan_destroy_fiber(fibers[i].sanitizer);
#endif
}

}  // namespace

const Position& position() { return fibers[current].position; }

unsigned char* dynamic_shared() { return shared_memory; }

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
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        for (int i = 0; i < count; ++i) {
          const unsigned n = static_cast<unsigned>(i);
          fibers[i].position = {
              {n % block.x, n / block.x % block.y, n / block.x / block.y}, {x, y, z}, block, grid};
        }
        run_block();
      }
    }
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

// torch without CUDA has no current CUDA stream; here there is but one.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
