// hard_negative_mining on the GPU: one block an image, no sort and no memory of its own.
//
// The key of the last negative wanted is found digit by digit, from the top: a histogram of the digit over
// the negatives that share the digits so far, then the bin in which the wanted one lies (radix select).
#pragma once

#include "common/device.cuh"
#include "mining/selection.h"

namespace ssd_ops {

constexpr int kMiningThreads = 1024;
constexpr int kMiningDigit = 11;
constexpr int kMiningBins = 1 << kMiningDigit;  // two a thread

// Adds one to a bin. Losses at the start of training are nearly equal: a warp whose lanes all have the same
// bin adds once.
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

template <typename T>
__global__ void __launch_bounds__(kMiningThreads)
    hard_negative_mining_kernel(Input losses, const int64_t* cls_labels, int64_t count, double ratio,
                                int64_t min_negatives, bool* selected) {
  using Key = typename FloatTraits<T>::Bits;
  constexpr int kKeyBits = 8 * sizeof(Key);
  __shared__ unsigned bins[kMiningBins];
  __shared__ int warp_sums[kMiningThreads / kWarp];
  __shared__ unsigned num_positives, num_negatives, chosen_bin, before_bin;
  const int64_t first = blockIdx.x * count;
  const int thread = static_cast<int>(threadIdx.x);
  const auto key_of = [&](int64_t i) { return loss_key(load<T>(losses, first + i)); };

  if (thread == 0) num_positives = num_negatives = 0;
  __syncthreads();
  for (int64_t begin = 0; begin < count; begin += kMiningThreads) {
    const int64_t i = begin + thread;
    const int64_t label = i < count ? cls_labels[first + i] : -1;
    const unsigned positive = __ballot_sync(kAllLanes, label > 0);
    const unsigned negative = __ballot_sync(kAllLanes, label == 0);
    if (lane_index() == 0) {
      atomicAdd(&num_positives, static_cast<unsigned>(__popc(positive)));
      atomicAdd(&num_negatives, static_cast<unsigned>(__popc(negative)));
    }
    if (i < count) selected[first + i] = label > 0;
  }
  __syncthreads();
  int64_t wanted = negatives_wanted(num_positives, num_negatives, ratio, min_negatives);
  if (wanted == 0) return;

  Key prefix = 0;  // of the last key wanted
  int known = 0;   // its bits that are known
  unsigned equal = 0;
  while (known < kKeyBits) {
    const int bits = min_of(kMiningDigit, kKeyBits - known), shift = kKeyBits - known - bits;
    for (int b = thread; b < kMiningBins; b += kMiningThreads) bins[b] = 0;
    __syncthreads();
    for (int64_t begin = 0; begin < count; begin += kMiningThreads) {
      const int64_t i = begin + thread;
      bool counts = i < count && cls_labels[first + i] == 0;
      const Key key = counts ? key_of(i) : 0;
      counts = counts && (known == 0 || key >> (kKeyBits - known) == prefix);
      count_in_bin(bins, counts, static_cast<unsigned>(key >> shift) & ((1u << bits) - 1));
    }
    __syncthreads();
    const unsigned low = bins[2 * thread], high = bins[2 * thread + 1];
    int total;
    const int64_t before_low = block_exclusive_sum(static_cast<int>(low + high), warp_sums, total);
    const int64_t before_high = before_low + low;
    if (before_low < wanted && wanted <= before_high) {
      chosen_bin = static_cast<unsigned>(2 * thread);
      before_bin = static_cast<unsigned>(before_low);
    } else if (before_high < wanted && wanted <= before_high + high) {
      chosen_bin = static_cast<unsigned>(2 * thread + 1);
      before_bin = static_cast<unsigned>(before_high);
    }
    __syncthreads();
    prefix = static_cast<Key>(prefix << bits | chosen_bin);
    equal = bins[chosen_bin];
    wanted -= before_bin;
    known += bits;
    __syncthreads();
  }

  // `wanted` of the `equal` negatives with this very key are left to choose: the first ones.
  int64_t taken = 0;
  for (int64_t begin = 0; begin < count; begin += kMiningThreads) {
    const int64_t i = begin + thread;
    const bool negative = i < count && cls_labels[first + i] == 0;
    const Key key = negative ? key_of(i) : 0;
    bool is_selected = negative && (key < prefix || (key == prefix && equal == wanted));
    if (equal != wanted) {
      int in_block;
      const int rank = block_exclusive_sum(negative && key == prefix, warp_sums, in_block);
      is_selected = is_selected || (negative && key == prefix && taken + rank < wanted);
      taken += in_block;
    }
    if (is_selected) selected[first + i] = true;
  }
}

}  // namespace ssd_ops
