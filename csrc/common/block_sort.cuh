// Sorts by one block.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

// Bitonic sort, ascending. Every comparison puts the smaller key in front (each merge begins with mirrored
// pairs), so the keys that are missing to a power of two need no memory: they would stay at the end. Pairs
// within 64 keys belong to one warp, which needs no barrier of the block for them.
template <typename Key>
__device__ __forceinline__ void block_sort(Key* keys,  // [count], in shared memory
                                           int count) {
  constexpr int kChunk = 2 * kWarp;
  const int lane = lane_index(), warp = warp_index();
  const int threads = static_cast<int>(blockDim.x), warps = threads / kWarp;
  int padded = kChunk;
  while (padded < count) padded *= 2;
  const auto order = [&](int i, int j) {
    if (j >= count) return;
    const Key a = keys[i], b = keys[j];
    if (b < a) {
      keys[i] = b;
      keys[j] = a;
    }
  };
  const auto mirrored = [&](int pair, int size) {
    const int begin = pair / (size / 2) * size, at = pair % (size / 2);
    order(begin + at, begin + size - 1 - at);
  };
  const auto strided = [&](int pair, int stride) {
    const int i = pair / stride * 2 * stride + pair % stride;
    order(i, i + stride);
  };
  for (int chunk = warp; chunk < padded / kChunk; chunk += warps) {
    const int pair = chunk * kWarp + lane;
    for (int size = 2; size <= kChunk; size *= 2) {
      mirrored(pair, size);
      __syncwarp();
      for (int stride = size / 4; stride > 0; stride /= 2) {
        strided(pair, stride);
        __syncwarp();
      }
    }
  }
  __syncthreads();
  for (int size = 2 * kChunk; size <= padded; size *= 2) {
    for (int pair = static_cast<int>(threadIdx.x); pair < padded / 2; pair += threads) mirrored(pair, size);
    __syncthreads();
    int stride = size / 4;
    for (; stride > kWarp; stride /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < padded / 2; pair += threads)
        strided(pair, stride);
      __syncthreads();
    }
    for (int chunk = warp; chunk < padded / kChunk; chunk += warps) {
      for (int s = stride; s > 0; s /= 2) {
        strided(chunk * kWarp + lane, s);
        __syncwarp();
      }
    }
    __syncthreads();
  }
}

// Bitonic sort, ascending, of one key for each of kThreads threads: returns the one whose place is the thread.
// Lanes exchange keys by of_lane_xor(key, mask), warps through `room`.
template <int kThreads, typename Key>
__device__ __forceinline__ Key sorted_by_block(Key mine,
                                               Key* room) {  // [2 * kThreads], in shared memory
  static_assert((kThreads & (kThreads - 1)) == 0);
  const int thread = static_cast<int>(threadIdx.x);
  int half = 0;  // of the room: while it is read, the other half is written
#pragma unroll
  for (int size = 2; size <= kThreads; size *= 2) {
    const bool ascends = (thread & size) == 0;
    const auto exchange = [&](const Key& other, int stride) {
      if ((other < mine) == (((thread & stride) == 0) == ascends)) mine = other;
    };
    int stride = size / 2;
#pragma unroll
    for (; stride >= kWarp; stride /= 2) {
      room[half + thread] = mine;
      __syncthreads();
      exchange(room[half + (thread ^ stride)], stride);
      half = kThreads - half;
    }
#pragma unroll
    for (; stride > 0; stride /= 2) exchange(mine.of_lane_xor(stride), stride);
  }
  return mine;
}

}  // namespace ssd_ops
