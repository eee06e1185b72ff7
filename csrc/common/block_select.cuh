// The smallest keys of many, chosen by one block, without a sort: radix select.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

constexpr int kSelectThreads = 1024;
constexpr int kSelectDigit = 11;
constexpr int kSelectBins = 1 << kSelectDigit;  // two a thread

struct SelectSpace {  // shared memory
  unsigned bins[kSelectBins];
  int sums[kSelectThreads / kWarp];
  unsigned chosen, before;
};

// Adds one to a bin, where `counts`. Keys are often nearly equal (losses at the start of training): a warp
// whose lanes all have the same bin adds once.
__device__ __forceinline__ void count_in_bin(unsigned* bins, bool counts, unsigned bin) {
  const unsigned mask = __ballot_sync(kAllLanes, counts);
  if (mask == 0) return;
  const int leader = __ffs(static_cast<int>(mask)) - 1;
  const unsigned first = __shfl_sync(kAllLanes, bin, leader);
  if (__all_sync(kAllLanes, !counts || bin == first)) {
    if (lane_index() == leader) atomicAdd(&bins[first], static_cast<unsigned>(__popc(mask)));
  } else if (counts) {
    atomicAdd(&bins[bin], 1u);
  }
}

// Chooses the `wanted` candidates with the smallest keys; of equal keys, those with the lowest index. Of the
// items 0..count-1, `num_candidates` are candidates, and `wanted` is not more. candidate(i, key) says whether
// item i is one, and gives its key; choose(i, place) gets each one chosen, with places that ascend with i.
// Every thread of a block of kSelectThreads has to call it.
//
// The key of the last one wanted is found digit by digit, from the top: a histogram of the digit over the
// candidates that share the digits so far, then the bin in which the wanted one lies.
template <typename Key, typename Candidate, typename Choose>
__device__ void block_select(int64_t count, int64_t num_candidates, int64_t wanted,
                             const Candidate& candidate, const Choose& choose, SelectSpace& space) {
  constexpr int kKeyBits = 8 * sizeof(Key);
  const int thread = static_cast<int>(threadIdx.x);
  if (wanted == 0) return;
  int64_t left = wanted;
  Key last = 0;   // of the last one wanted
  int known = 0;  // its bits that are known
  int64_t equal = 0;
  if (wanted == num_candidates) {  // all of them: no key is past the last
    last = ~last;
    known = kKeyBits;
    equal = left;
  }
  while (known < kKeyBits) {
    const int bits = min_of(kSelectDigit, kKeyBits - known), shift = kKeyBits - known - bits;
    for (int b = thread; b < kSelectBins; b += kSelectThreads) space.bins[b] = 0;
    __syncthreads();
    for (int64_t begin = 0; begin < count; begin += kSelectThreads) {
      Key key = 0;
      bool counts = begin + thread < count && candidate(begin + thread, key);
      counts = counts && (known == 0 || key >> (kKeyBits - known) == last);
      count_in_bin(space.bins, counts, static_cast<unsigned>(key >> shift) & ((1u << bits) - 1));
    }
    __syncthreads();
    const unsigned low = space.bins[2 * thread], high = space.bins[2 * thread + 1];
    int total;
    const int64_t before_low = block_exclusive_sum(static_cast<int>(low + high), space.sums, total);
    const int64_t before_high = before_low + low;
    if (before_low < left && left <= before_high) {
      space.chosen = static_cast<unsigned>(2 * thread);
      space.before = static_cast<unsigned>(before_low);
    } else if (before_high < left && left <= before_high + high) {
      space.chosen = static_cast<unsigned>(2 * thread + 1);
      space.before = static_cast<unsigned>(before_high);
    }
    __syncthreads();
    last = static_cast<Key>(last << bits | space.chosen);
    equal = space.bins[space.chosen];
    left -= space.before;
    known += bits;
    __syncthreads();
  }

  // `left` of the `equal` candidates with this very key are in: the first ones.
  int64_t place = 0, seen = 0;
  for (int64_t begin = 0; begin < count; begin += kSelectThreads) {
    const int64_t i = begin + thread;
    Key key = 0;
    const bool counts = i < count && candidate(i, key);
    bool chosen = counts && (key < last || (key == last && equal == left));
    int in_block;
    if (equal != left) {
      const int rank = block_exclusive_sum(counts && key == last, space.sums, in_block);
      chosen = chosen || (counts && key == last && seen + rank < left);
      seen += in_block;
    }
    const int rank = block_exclusive_sum(chosen, space.sums, in_block);
    if (chosen) choose(i, place + rank);
    place += in_block;
  }
}

}  // namespace ssd_ops
