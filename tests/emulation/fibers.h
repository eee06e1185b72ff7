// The threads of CUDA blocks as fibers: each has a stack of its own, and all take turns on one thread of the
// system. A barrier is a switch to another fiber, so a block of 1,024 costs little.
//
// Several blocks are resident at a time, as on a multiprocessor, and their warps take turns of random length:
// a kernel that waits for another block really waits. The schedule is the same every time, but for these
// variables of the environment, read at each launch:
//   SSD_OPS_EMULATION_SEED    the schedule: 0 (the default), 1, 2 .. An odd one starts the last block first.
//   SSD_OPS_EMULATION_BLOCKS  blocks that are resident (4; 2 under ThreadSanitizer). Another begins where one ends.
// A launch that can never end is reported: a barrier that not all threads reach, lanes that meet in different
// warp operations, blocks that wait for one that has no room to begin.
//
// fibers.cpp is never instrumented: under ThreadSanitizer it tells the tool of every fiber and of what orders
// two CUDA threads, and of nothing else. These are __syncthreads, __syncwarp, and a fence before a relaxed
// store with a fence after the relaxed load of it. Shuffles, votes and atomics order no memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulation {

struct Index {
  unsigned x, y, z;
};

// What the running CUDA thread sees as threadIdx, blockIdx, blockDim, gridDim.
struct Position {
  Index thread, block, block_size, grid_size;
};
const Position& position();

// Bytes of shared memory that a block may have: as on a GPU of compute capability 7.5.
constexpr int kSharedLimit = 64 * 1024;

// Runs `body` once for every thread of every block. Threads of the system wait for each other here.
void run_grid(Index grid, Index block, size_t shared_bytes, void (*body)(void*), void* argument);

// The running block's memory of `shared_bytes`, filled with garbage when the block begins.
unsigned char* dynamic_shared();

// The running block's variable of one declaration; also garbage at first.
void* shared_variable(const void* declaration, size_t bytes);

// The dynamic shared memory that a kernel may ask for, an attribute that it keeps from one call to the next.
void set_shared_attribute(const void* kernel, int bytes);
// Whether a launch has what it asks for; false also where a test wants it to fail.
bool may_launch(const void* kernel, size_t shared_bytes);

void block_barrier();

// A place in the sources that calls a warp operation.
struct Place {
  const char* operation;
  const char* file;
  unsigned line;
  bool operator==(const Place&) const = default;  // by address: all lanes run the same call
};

// Waits for the lanes of `mask`, all at the same place, and returns what each of the 32 lanes gave, for the
// lanes in `mask`.
const uint64_t* warp_exchange(unsigned mask, uint64_t value, Place place);
// The same without a value; it orders memory.
void warp_barrier(unsigned mask, Place place);

// What launches did; a test asks for it by emulation_counts.
struct Counts {
  int64_t launches, blocks;
  int64_t barriers;         // that all threads of a block reached
  int64_t warp_operations;  // of as many lanes as take part
  int64_t polls;            // relaxed loads of a thread, atomics that changed nothing, sleeps
  // Of the variant `counted` alone. A step is a basic block of the code that the compiler made.
  int64_t steps;    // of all threads
  int64_t longest;  // of the thread with the most in each launch
};

void fence();
void sleep();
// After a relaxed load or an atomic that changed nothing; before a store or an atomic. Others may run now.
void loads(const void* at);
void stores(const void* at);
// After a store, or an atomic that changed something.
void changed(const void* at);

}  // namespace emulation
