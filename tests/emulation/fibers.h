// The threads of one CUDA block as fibers: each has a stack of its own, and all take turns on one thread
// of the system. A barrier is a switch to the next fiber, so a block of 1,024 costs little.
//
// The compiled file is never instrumented: under ThreadSanitizer it tells the tool of every fiber and of
// every barrier, and of nothing else, so that only barriers order two CUDA threads.
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

// Bytes of dynamic shared memory that a block may have: as on a GPU of compute capability 7.5.
constexpr int kSharedLimit = 64 * 1024;

// Runs `body` once for every thread of every block, the blocks one after another (from the last to the first
// where the environment variable SSD_OPS_EMULATION_ORDER is "reverse"). Threads of the system
// wait for each other here. A barrier that not all threads reach ends the process with a message.
void run_grid(Index grid, Index block, size_t shared_bytes, void (*body)(void*), void* argument);

// The running block's memory of `shared_bytes`, filled with garbage when the block begins.
unsigned char* dynamic_shared();

// The dynamic shared memory that a kernel may ask for, an attribute that it keeps from one call to the next.
void set_shared_attribute(const void* kernel, int bytes);
// Whether a launch has what it asks for; false also where a test wants it to fail.
bool may_launch(const void* kernel, size_t shared_bytes);

void block_barrier();

// Waits for the lanes of `mask`, and returns what each of the 32 lanes gave, for the lanes in `mask`.
const uint64_t* warp_exchange(unsigned mask, uint64_t value);

}  // namespace emulation
