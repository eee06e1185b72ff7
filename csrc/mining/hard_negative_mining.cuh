// hard_negative_mining on the GPU: one block an image, no sort and no memory of its own.
#pragma once

#include "common/block_select.cuh"
#include "common/mining.h"

namespace ssd_ops {

template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    hard_negative_mining_kernel(Input losses,               // [B, count]
                                const int64_t* cls_labels,  // [B, count]
                                int64_t count, double ratio, int64_t min_negatives,
                                bool* selected) {  // [B, count]
  using Key = typename FloatTraits<T>::Bits;
  __shared__ SelectSpace space;
  __shared__ unsigned num_positives, num_negatives;
  const int64_t first = blockIdx.x * count;
  if (threadIdx.x == 0) num_positives = num_negatives = 0;
  __syncthreads();
  for (int64_t begin = 0; begin < count; begin += kSelectThreads) {
    const int64_t i = begin + threadIdx.x;
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
  block_select<Key>(
      count, num_negatives, negatives_wanted<double>(num_positives, num_negatives, ratio, min_negatives),
      [&](int64_t i, Key& key) {
        if (cls_labels[first + i] != 0) return false;
        key = loss_key(load<T>(losses, first + i));
        return true;
      },
      [&](int64_t i, int64_t) { selected[first + i] = true; }, space);
}

}  // namespace ssd_ops
