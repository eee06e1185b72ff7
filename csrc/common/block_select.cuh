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

// Items that follow each other, of which a thread takes so many at a time: one wide load, one vote.
constexpr unsigned kSelectBatch = 4;

// Adds one to the bin of each item that counts. Keys are often nearly equal (losses at the start of
// training): a warp whose items all have the same bin adds once.
__device__ __forceinline__ void count_in_bins(unsigned* bins, const bool (&counts)[kSelectBatch],
                                              const unsigned (&bin)[kSelectBatch]) {
  int number = 0;
  unsigned any_bin = 0;
  for (unsigned j = 0; j < kSelectBatch; ++j) {
    number += counts[j];
    any_bin = counts[j] ? bin[j] : any_bin;
  }
  const unsigned mask = __ballot_sync(kAllLanes, number > 0);
  if (mask == 0) return;
  const unsigned one = __shfl_sync(kAllLanes, any_bin, __ffs(static_cast<int>(mask)) - 1);
  bool differs = false;
  for (unsigned j = 0; j < kSelectBatch; ++j) differs |= counts[j] & (bin[j] != one);
  if (__any_sync(kAllLanes, differs)) {
    for (unsigned j = 0; j < kSelectBatch; ++j)
      if (counts[j]) atomicAdd(&bins[bin[j]], 1u);
  } else {
    const int sum = warp_inclusive_sum(number);
    if (lane_index() == kWarp - 1) atomicAdd(&bins[one], static_cast<unsigned>(sum));
  }
}

// Where a selection of the smallest keys ends.
template <typename Key>
struct SelectEnd {
  Key last;             // of the last one wanted
  int64_t left, equal;  // of so many items with this very key, the first `left` are wanted
};

// The key of the last of the `wanted` smallest, 1 or more, of `count` items. read(i, keys) gives those of
// kSelectBatch items from i on, i a multiple of it; past the last item, ~0. At least `wanted` keys have their
// upper `known` bits 0. Every thread of a block of kSelectThreads has to call it.
//
// It is found digit by digit, from the top: a histogram of the digit over the keys that share the digits so
// far, then the bin in which the wanted one lies.
template <typename Key, typename Read>
__device__ SelectEnd<Key> find_last(unsigned count, int64_t wanted, const Read& read, SelectSpace& space,
                                    int known = 0) {
  constexpr int kKeyBits = 8 * sizeof(Key);
  const unsigned thread = threadIdx.x, lane = thread % kWarp;
  SelectEnd<Key> found{0, wanted, 0};  // `last` with its lower bits 0
  for (int open = kKeyBits - known; open > 0;) {
    const int bits = min_of(kSelectDigit, open), shift = open - bits;
    const Key span = ~Key(0) >> (kKeyBits - open);
    for (unsigned b = 0; b < kSelectBins; b += kSelectThreads) space.bins[b + thread] = 0;
    __syncthreads();
    // Whole warps, since they vote.
    for (unsigned i = kSelectBatch * thread; i - kSelectBatch * lane < count;
         i += kSelectBatch * kSelectThreads) {
      Key keys[kSelectBatch];
      bool counts[kSelectBatch];
      unsigned bins[kSelectBatch];
      read(i, keys);
      for (unsigned j = 0; j < kSelectBatch; ++j) {
        const Key from_last = keys[j] - found.last;
        counts[j] = from_last <= span;
        bins[j] = static_cast<unsigned>(from_last >> shift);
      }
      count_in_bins(space.bins, counts, bins);
    }
    __syncthreads();
    const unsigned low = space.bins[2 * thread], high = space.bins[2 * thread + 1];
    int total;
    const int64_t before_low = block_exclusive_sum(static_cast<int>(low + high), space.sums, total);
    const int64_t before_high = before_low + low;
    if (before_low < found.left && found.left <= before_high) {
      space.chosen = 2 * thread;
      space.before = static_cast<unsigned>(before_low);
    } else if (before_high < found.left && found.left <= before_high + high) {
      space.chosen = 2 * thread + 1;
      space.before = static_cast<unsigned>(before_high);
    }
    __syncthreads();
    found.last += static_cast<Key>(space.chosen) << shift;
    found.equal = space.bins[space.chosen];
    found.left -= space.before;
    open = shift;
    __syncthreads();
  }
  return found;
}

// Chooses the `wanted` candidates with the smallest keys; of equal keys, those with the lowest index. Of the
// items 0..count-1, `num_candidates` are candidates, and `wanted` is not more. candidate(i, key) says whether
// item i is one, and gives its key, which is less than ~0; choose(i, place) gets each one chosen, with places
// that ascend with i. Every thread of a block of kSelectThreads has to call it.
template <typename Key, typename Candidate, typename Choose>
__device__ void block_select(int64_t count, int64_t num_candidates, int64_t wanted,
                             const Candidate& candidate, const Choose& choose, SelectSpace& space) {
  if (wanted == 0) return;
  SelectEnd<Key> found{static_cast<Key>(~Key(0)), 0, 0};
  if (wanted < num_candidates)
    found = find_last<Key>(
        static_cast<unsigned>(count), wanted,
        [&](unsigned i, Key(&keys)[kSelectBatch]) {
          for (unsigned j = 0; j < kSelectBatch; ++j)
            if (i + j >= count || !candidate(i + j, keys[j])) keys[j] = ~Key(0);
        },
        space);
  int64_t place = 0, seen = 0;
  for (int64_t begin = 0; begin < count; begin += kSelectThreads) {
    const int64_t i = begin + threadIdx.x;
    Key key = 0;
    const bool counts = i < count && candidate(i, key), equal = counts && key == found.last;
    bool chosen = counts && (key < found.last || (equal && found.equal == found.left));
    int in_block;
    if (found.equal != found.left) {
      const int rank = block_exclusive_sum(equal, space.sums, in_block);
      chosen = chosen || (equal && seen + rank < found.left);
      seen += in_block;
    }
    const int rank = block_exclusive_sum(chosen, space.sums, in_block);
    if (chosen) choose(i, place + rank);
    place += in_block;
  }
}

}  // namespace ssd_ops
