// hard_negative_mining on the GPU: one block an image, no sort and no memory of its own.
#pragma once

#include "common/block_mine.cuh"

namespace ssd_ops {

template <typename T, bool kKeep>
__global__ void __launch_bounds__(kSelectThreads)
    hard_negative_mining_kernel(Input losses,               // [B, count]
                                const int64_t* cls_labels,  // [B, count]
                                unsigned count, double ratio, int64_t min_negatives,
                                bool* selected) {  // [B, count]
  using Key = typename FloatTraits<T>::Bits;
  SSD_DYNAMIC_SHARED(memory);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * count;
  cls_labels += first;
  selected += first;
  // One load for four: labels and losses of an image begin anywhere.
  losses.aligned = losses.aligned && first % 4 == 0 && reinterpret_cast<uintptr_t>(cls_labels) % 16 == 0;
  const auto read = [&](unsigned i, Key(&keys)[kSelectBatch]) {
    int64_t labels[kSelectBatch];
    T values[kSelectBatch];
    with_type(losses, [&](const auto* in) {
      in += first;
      if (losses.aligned && i + kSelectBatch <= count) {
        load_four(cls_labels + i, labels);
        load_four(in + i, values);
      } else {
        for (unsigned j = 0; j < kSelectBatch; ++j) {
          labels[j] = i + j < count ? cls_labels[i + j] : -1;
          values[j] = i + j < count ? convert<T>(in[i + j]) : T(0);
        }
      }
    });
    for (unsigned j = 0; j < kSelectBatch; ++j) {
      const Key other = labels[j] > 0 ? kPositiveKey<Key> : kIgnoredKey<Key>;
      keys[j] = labels[j] == 0 ? loss_key(values[j]) : other;
    }
  };
  const auto wanted = [&](int64_t positives, int64_t negatives) {
    return negatives_wanted<double>(positives, negatives, ratio, min_negatives);
  };
  const auto write = [&](unsigned i, const Key(&keys)[kSelectBatch], const bool (&is_hard)[kSelectBatch]) {
    for (unsigned j = 0; j < kSelectBatch && i + j < count; ++j)
      selected[i + j] = is_hard[j] || keys[j] == kPositiveKey<Key>;
  };
  mine_block<Key, kKeep>(count, read, wanted, write, memory);
}

}  // namespace ssd_ops
