#include "fibers.h"

#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

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
// Each block has fibers of its own, which are dear for ThreadSanitizer.
#ifdef EMULATION_TSAN
constexpr int kResident = 2;
#else
constexpr int kResident = 4;
#endif
#ifdef EMULATION_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
void __asan_poison_memory_region(const void* memory, size_t size);
void __asan_unpoison_memory_region(const void* memory, size_t size);
}
#else
static void __asan_poison_memory_region(const void*, size_t) {}
static void __asan_unpoison_memory_region(const void*, size_t) {}
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
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr size_t kStack = 256 * 1024;
constexpr size_t kDeclaredShared = 48 * 1024;  // of variables: nvcc refuses more
constexpr size_t kRedZone = 32;                // around each of them
constexpr uint64_t kMostPolls = uint64_t{1} << 24;

struct Fiber {
  Context context;
  Position position;
  uint64_t view[kWarp];  // what the lanes of a part of the warp gave
  uint64_t steps;
  bool fenced;           // since the thread began
  const void* seen[16];  // words loaded since its last fence, a ring
  unsigned loads;
  void* sanitizer;  // its fiber for ThreadSanitizer, its fake stack for AddressSanitizer
};

// A bit for each lane.
struct Warp {
  unsigned ready;     // to run
  unsigned paused;    // to run too, but not before the warp's next turn
  unsigned at_block;  // waiting for the block
  unsigned at_warp;   // waiting for lanes of the warp
  unsigned done;
  // By lane: what it waits for, and what it gave.
  unsigned masks[kWarp];
  Place places[kWarp];
  uint64_t given[kWarp];
  uint64_t view[kWarp];  // what all lanes gave
  bool odd;              // how often all lanes met
};

// Addresses that stand for what orders threads, for ThreadSanitizer. Memory of one block alone: with memory
// that an earlier block had, this one would be ordered after that.
struct Orders {
  char start, end;
  // Barriers of all threads use the one and the other in turn: who is early at the next orders nobody here.
  char block[2], warps[kMaxWarps][2], parts_of_warps[kMaxWarps];
};

constexpr int kMaxVariables = 64;

struct Variable {
  const void* declaration;
  void* memory;
};

struct Block {
  Fiber fibers[kMaxThreads];
  Warp warps[kMaxWarps];
  char* stacks = nullptr;
  unsigned runnable;  // a bit for each warp that has a lane to run
  int waiting, ended;
  bool odd;  // how often all threads met
  Variable variables[kMaxVariables];
  int num_variables;
  size_t declared;
  unsigned char *declared_memory, *dynamic_memory;
  Orders* orders;
};

std::vector<std::unique_ptr<Block>> blocks;  // as many as were ever resident at a time
Block* block;                                // whose thread is running, and this thread:
int current;
Context scheduler;
[[maybe_unused]] void* scheduler_sanitizer;
[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_stack_size;
int count, warps;  // of a block
size_t dynamic_size;
void (*the_body)(void*);
void* the_argument;
char launch_end;
uint64_t random_state;
int fill;             // of new shared memory
uint64_t idle_polls;  // since a thread changed something

// What all launches did, until a test sets them back (fibers.h).
Counts counts;
bool runs_kernels = true;
uint64_t steps_outside;
uint64_t* steps = &steps_outside;  // of the running thread

uint64_t random_bits() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

uint64_t number_of(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

Fiber& running() {
  return block->fibers[current];
}
Warp& running_warp() {
  return block->warps[current / kWarp];
}
unsigned running_bit() {
  return 1u << current % kWarp;
}

// Ends the process; says where threads of the block stand in a warp operation.
[[noreturn]] void fault(const char* what, std::initializer_list<int> threads = {}) {
  const Index b = block->fibers[0].position.block;
  std::fprintf(stderr, "emulation: block (%u, %u, %u): %s\n", b.x, b.y, b.z, what);
  for (const int thread : threads) {
    const Warp& warp = block->warps[thread / kWarp];
    const Place& place = warp.places[thread % kWarp];
    std::fprintf(stderr, "emulation:   thread %d in %s at %s:%u, with mask %08x\n", thread, place.operation,
                 place.file, place.line, warp.masks[thread % kWarp]);
  }
  std::abort();
}

void enter(int next) {
  current = next;
  Fiber& f = running();
  steps = &f.steps;
#ifdef EMULATION_TSAN
  __tsan_switch_to_fiber(f.sanitizer, 1);  // 1: the switch orders nothing
#endif
#ifdef EMULATION_ASAN
  __sanitizer_start_switch_fiber(&scheduler_sanitizer, block->stacks + next * kStack, kStack);
#endif
  switch_context(scheduler, f.context);
  steps = &steps_outside;
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(scheduler_sanitizer, nullptr, nullptr);
#endif
}

// Back to the scheduler, until it comes round to this fiber again.
void leave(bool for_good = false) {
  Fiber& f = running();
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

// Lets others run; the warp's other lanes first.
void pause() {
  Warp& warp = running_warp();
  warp.ready &= ~running_bit();
  warp.paused |= running_bit();
  leave();
}

// The running thread has read a word that others write.
void see(const void* at) {
  Fiber& mine = running();
  if (at) mine.seen[mine.loads++ % std::size(mine.seen)] = at;
}

void trampoline() {
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  __tsan_acquire(&block->orders->start);
  the_body(the_argument);
  __tsan_release(&launch_end);
  __tsan_release(&block->orders->end);
  idle_polls = 0;
  Warp& warp = running_warp();
  warp.ready &= ~running_bit();
  warp.done |= running_bit();
  if (++block->ended == count) {
    // By a thread of the block, ordered after all others: the scheduler is to stay without order among blocks.
    __tsan_acquire(&block->orders->end);
    std::free(block->declared_memory);
    std::free(block->dynamic_memory);
    std::free(block->orders);
  }
  leave(true);
}

[[noreturn]] void stuck() {
  int at_block = 0, at_warp = 0, done = 0, one = 0;
  for (int w = 0; w < warps; ++w) {
    const Warp& warp = block->warps[w];
    at_block += __builtin_popcount(warp.at_block);
    at_warp += __builtin_popcount(warp.at_warp);
    done += __builtin_popcount(warp.done);
    if (warp.at_warp) one = w * kWarp + __builtin_ctz(warp.at_warp);
  }
  char text[200];
  std::snprintf(text, sizeof(text),
                "is stuck at a barrier: %d threads at __syncthreads, %d in a warp operation, %d ended",
                at_block, at_warp, done);
  at_warp > 0 ? fault(text, {one}) : fault(text);
}

void start(Block& b, Index at, Index size, Index grid) {
  if (!b.stacks) {
    void* memory = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    b.stacks = static_cast<char*>(memory);
  }
  b.waiting = b.ended = b.num_variables = 0;
  b.odd = false;
  b.declared = kRedZone;
  const size_t declared = kDeclaredShared + (kMaxVariables + 1) * 2 * kRedZone;
  b.declared_memory = static_cast<unsigned char*>(std::aligned_alloc(kRedZone, declared));
  b.dynamic_memory = static_cast<unsigned char*>(std::malloc(dynamic_size));
  b.orders = static_cast<Orders*>(std::malloc(sizeof(Orders)));
  if (!b.declared_memory || !b.dynamic_memory || !b.orders) std::abort();
  std::memset(b.declared_memory, fill, declared);
  std::memset(b.dynamic_memory, fill, dynamic_size);
  __asan_poison_memory_region(b.declared_memory, declared);
  __tsan_release(&b.orders->start);
  for (int w = 0; w < kMaxWarps; ++w) {
    b.warps[w] = {};
    if (w < warps) b.warps[w].ready = count - w * kWarp < kWarp ? (1u << (count - w * kWarp)) - 1 : ~0u;
  }
  b.runnable = warps == kMaxWarps ? ~0u : (1u << warps) - 1;
  for (int i = 0; i < count; ++i) {
    Fiber& f = b.fibers[i];
    const unsigned t = static_cast<unsigned>(i);
    f.position = {{t % size.x, t / size.x % size.y, t / size.x / size.y}, at, size, grid};
    f.steps = 0;
    f.fenced = false;
    f.loads = 0;
    make_context(f.context, b.stacks + i * kStack, kStack, trampoline);
#ifdef EMULATION_TSAN
    if (!f.sanitizer) f.sanitizer = __tsan_create_fiber(0);  // serves every later block too
#endif
  }
}

// Runs one warp of a block until all its lanes wait, or for some time.
void give_turn(Block& b) {
  block = &b;
  const uint64_t random = random_bits();
  const int after = static_cast<int>(random % kMaxWarps);
  const unsigned turned = b.runnable >> after | b.runnable << (kMaxWarps - after) % kMaxWarps;
  if (turned == 0) stuck();
  const int w = (__builtin_ctz(turned) + after) % kMaxWarps;
  Warp& warp = b.warps[w];
  const bool last_first = random >> 8 & 1;
  warp.ready |= warp.paused;
  warp.paused = 0;
  for (int left = 64 << (random >> 16) % 8; left > 0 && warp.ready; --left) {
    const int lane = last_first ? 31 - __builtin_clz(warp.ready) : __builtin_ctz(warp.ready);
    enter(w * kWarp + lane);
  }
  if (!(warp.ready | warp.paused)) b.runnable &= ~(1u << w);
}

}  // namespace

const Position& position() {
  return running().position;
}

unsigned char* dynamic_shared() {
  return block->dynamic_memory;
}

void* shared_variable(const void* declaration, size_t bytes) {
  Block& b = *block;
  for (int i = 0; i < b.num_variables; ++i)
    if (b.variables[i].declaration == declaration) return b.variables[i].memory;
  unsigned char* memory = b.declared_memory + b.declared;
  b.declared += (bytes + kRedZone - 1) / kRedZone * kRedZone + kRedZone;
  if (b.num_variables == kMaxVariables || b.declared > kDeclaredShared + 2 * kRedZone * kMaxVariables)
    fault("declares more than 48 KB of shared memory, or more than 64 variables in it");
  __asan_unpoison_memory_region(memory, bytes);
  b.variables[b.num_variables++] = {declaration, memory};
  return memory;
}

void run_grid(Index grid, Index size, size_t shared_bytes, void (*body)(void*), void* argument) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (!runs_kernels) {
    ++counts.launches;
    return;
  }
#ifdef EMULATION_TSAN
  scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  count = static_cast<int>(size.x * size.y * size.z);
  warps = (count + kWarp - 1) / kWarp;
  the_body = body;
  the_argument = argument;
  dynamic_size = shared_bytes;
  const uint64_t seed = number_of("SSD_OPS_EMULATION_SEED", 0);
  random_state = seed;
  fill = seed == 0 ? 0xcd : static_cast<int>(random_bits() & 0xff);
  idle_polls = 0;
  const uint64_t total = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t room = number_of("SSD_OPS_EMULATION_BLOCKS", kResident);
  const size_t resident = static_cast<size_t>(std::min(total, std::max<uint64_t>(room, 1)));
  while (blocks.size() < resident) blocks.push_back(std::make_unique<Block>());
  uint64_t started = 0, longest = 0;
  ++counts.launches;
  counts.blocks += static_cast<int64_t>(total);
  const auto start_next = [&](Block& b) {
    const uint64_t n = seed % 2 == 0 ? started : total - 1 - started;
    ++started;
    start(b,
          {static_cast<unsigned>(n % grid.x), static_cast<unsigned>(n / grid.x % grid.y),
           static_cast<unsigned>(n / grid.x / grid.y)},
          size, grid);
  };
  std::vector<Block*> turns;
  for (size_t i = 0; i < resident; ++i) {
    turns.push_back(blocks[i].get());
    start_next(*turns.back());
  }
  while (!turns.empty()) {
    Block*& b = turns[random_bits() % turns.size()];
    give_turn(*b);
    if (b->ended < count) continue;
    for (int i = 0; i < count; ++i) {
      counts.steps += static_cast<int64_t>(b->fibers[i].steps);
      longest = std::max(longest, b->fibers[i].steps);
    }
    if (started < total) {
      start_next(*b);
    } else {
      b = turns.back();
      turns.pop_back();
    }
  }
  counts.longest += static_cast<int64_t>(longest);
  __tsan_acquire(&launch_end);
}

void block_barrier() {
  Block& b = *block;
  char* const order = &b.orders->block[b.odd];
  __tsan_release(order);
  if (++b.waiting < count) {
    Warp& warp = running_warp();
    warp.ready &= ~running_bit();
    warp.at_block |= running_bit();
    leave();
  } else {
    b.waiting = 0;
    b.odd = !b.odd;
    ++counts.barriers;
    for (int w = 0; w < warps; ++w) {
      Warp& warp = b.warps[w];
      if (warp.at_block) b.runnable |= 1u << w;
      warp.ready |= warp.at_block;
      warp.at_block = 0;
    }
  }
  __tsan_acquire(order);
}

const uint64_t* warp_exchange(unsigned mask, uint64_t value, Place place) {
  const int lane = current % kWarp;
  const unsigned bit = running_bit();
  Warp& warp = running_warp();
  warp.masks[lane] = mask;
  warp.places[lane] = place;
  warp.given[lane] = value;
  if (!(mask & bit)) fault("a lane is not in its own mask", {current});
  bool complete = ((warp.at_warp | bit) & mask) == mask;
  for (unsigned lanes = complete ? mask : 0; lanes; lanes &= lanes - 1) {
    const int other = __builtin_ctz(lanes);
    if (warp.masks[other] == mask && warp.places[other] == place) continue;
    if (warp.masks[other] & bit)
      fault("lanes of a warp meet in different places", {current, current - lane + other});
    complete = false;  // that one waits for others first
  }
  counts.warp_operations += complete;
  if (!complete) {
    warp.ready &= ~bit;
    warp.at_warp |= bit;
    leave();
  } else if (mask == ~0u) {
    warp.odd = !warp.odd;
    // All lanes have used what they were given before, or else they were not here.
    std::memcpy(warp.view, warp.given, sizeof(warp.view));
    warp.at_warp = 0;
    warp.ready = mask;
  } else {
    for (unsigned lanes = mask; lanes; lanes &= lanes - 1)
      std::memcpy(block->fibers[current - lane + __builtin_ctz(lanes)].view, warp.given, sizeof(warp.given));
    warp.at_warp &= ~mask;
    warp.ready |= mask;
  }
  return mask == ~0u ? warp.view : running().view;
}

void warp_barrier(unsigned mask, Place place) {
  Orders& orders = *block->orders;
  const int w = current / kWarp;
  char* const order = mask == ~0u ? &orders.warps[w][running_warp().odd] : &orders.parts_of_warps[w];
  __tsan_release(order);
  warp_exchange(mask, 0, place);
  __tsan_acquire(order);
}

void fence() {
  Fiber& mine = running();
  // What a thread stored before its own fence is seen after this one by who has seen a later store of it.
  for (unsigned i = 0; i < std::min<unsigned>(mine.loads, std::size(mine.seen)); ++i)
    __tsan_acquire(const_cast<void*>(mine.seen[i]));
  mine.loads = 0;
  mine.fenced = true;
}

void sleep() {
  loads(nullptr);
  pause();
}

void loads(const void* at) {
  see(at);
  ++counts.polls;
  if (++idle_polls > kMostPolls)
    fault("waits, like all resident blocks, for what none of them does; other blocks cannot begin");
  if (random_bits() % 8 == 0) pause();
}

void stores(const void* at) {
  if (running().fenced) __tsan_release(const_cast<void*>(at));
  if (random_bits() % 8 == 0) pause();
}

void changed(const void* at) {
  see(at);
  idle_polls = 0;
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
// Without its kernels, a call takes the host's time alone.
extern "C" __attribute__((visibility("default"))) void emulation_run_kernels(bool runs) {
  emulation::runs_kernels = runs;
}
extern "C" __attribute__((visibility("default"))) int emulation_lowered_attributes() {
  return lowered_attributes;
}

extern "C" __attribute__((visibility("default"))) void emulation_counts(emulation::Counts* since_last_time) {
  *since_last_time = std::exchange(emulation::counts, {});
}

#ifdef EMULATION_COUNTED
extern "C" void __sanitizer_cov_trace_pc() {
  ++*emulation::steps;
}
#endif

// torch without CUDA has no current CUDA stream; the emulation has only one.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
