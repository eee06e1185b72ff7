// multibox_target as a Problem of matching.cuh, and the mining of negatives after it.
#pragma once

#include "common/activation.h"
#include "common/block_mine.cuh"
#include "target/matching.cuh"

namespace ssd_ops {

template <typename Real>
struct TargetProblem {
  using T = Real;
  using Key = typename FloatTraits<T>::Bits;

  Input anchors, labels;                   // [A, 4], [B, G, 5]
  int64_t num_anchors, num_gts, num_rows;  // num_gts: of an image, padding included
  MatchRules<T> rules;
  TargetRules<T> target;
  T *offsets, *masks;   // [B, A, 4]
  int64_t* cls_labels;  // [B, A]
  Key* mining_keys;     // [B, A], or null: 0 where background_keys has to put the key
  T mining_threshold;
  int64_t ignore_label;

  __device__ Box<T> anchor(int64_t i) const { return load_row<T>(anchors, i); }
  __device__ GtRange range(int64_t image) const { return {image * num_gts, (image + 1) * num_gts}; }
  __device__ bool gt(int64_t row, Box<T>& box) const {
    T cls;
    return read(row, cls, box);
  }
  __device__ bool read(int64_t row, T& cls, Box<T>& box) const {
    with_type(labels, [&](const auto* p) {
      p += row * 5;
      cls = convert<T>(p[0]);
      box = {convert<T>(p[1]), convert<T>(p[2]), convert<T>(p[3]), convert<T>(p[4])};
    });
    return is_ground_truth(cls, box, target.semantics);
  }
  __device__ void write(int64_t image, GtRange range, int64_t i, Box<T> anchor_box, int matched,
                        T iou) const {
    const int64_t at = image * num_anchors + i;
    Box<T> offset{0, 0, 0, 0}, mask{0, 0, 0, 0};
    int64_t label = matched == kNoGts ? target.label_without_gts : 0;
    if (matched >= 0) {
      T cls;
      Box<T> box;
      read(range.begin + matched, cls, box);
      const Offset<T> o = encode(box, anchor_box, target.encoding);
      offset = {o.x, o.y, o.w, o.h};
      mask = {1, 1, 1, 1};
      label = static_cast<int64_t>(cls) + 1;
    }
    store_row(offsets, at, offset);
    store_row(masks, at, mask);
    cls_labels[at] = label;
    if (mining_keys)
      mining_keys[at] = matched >= 0 ? kPositiveKey<Key> : (iou < mining_threshold ? 0 : kIgnoredKey<Key>);
  }
  __device__ bool is_matched(int64_t at) const { return masks[4 * at] != T(0); }
  __device__ void ignore(int64_t at) const {
    cls_labels[at] = ignore_label;
    if (mining_keys) mining_keys[at] = kIgnoredKey<Key>;
  }
};

constexpr int kBackgroundThreads = 256;

// Puts the keys of the probability of background where `write` has left 0: the lowest probability has the
// smallest key.
template <typename T>
__global__ void __launch_bounds__(kBackgroundThreads)
    background_keys(Input cls_preds,  // [B, C+1, A]
                    int64_t num_images, int64_t num_classes, int64_t num_anchors,
                    typename FloatTraits<T>::Bits* keys) {  // [B, A]
  const int64_t at = global_index();
  if (at >= num_images * num_anchors || keys[at] != 0) return;
  const int64_t first = at / num_anchors * num_classes * num_anchors + at % num_anchors;
  const auto logit = [&](int64_t c) { return load<T>(cls_preds, first + c * num_anchors); };
  keys[at] = loss_key(-probability(softmax_of<T>(logit, num_classes), logit(0)));
}

// Leaves class 0 only to the negatives that look least like background: one block for each image.
template <typename T, bool kKeep>
__global__ void __launch_bounds__(kSelectThreads)
    mine_negatives(MiningRules rules, unsigned count,
                   const typename FloatTraits<T>::Bits* keys,  // [B, count]
                   int64_t* cls_labels) {                      // [B, count]
  using Key = typename FloatTraits<T>::Bits;
  SSD_DYNAMIC_SHARED(memory);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * count;
  const bool aligned = first % kSelectBatch == 0;
  keys += first;
  cls_labels += first;
  const auto read = [&](unsigned i, Key(&into)[kSelectBatch]) {
    if (aligned && i + kSelectBatch <= count)
      load_four(keys + i, into);
    else
      for (unsigned j = 0; j < kSelectBatch; ++j) into[j] = i + j < count ? keys[i + j] : kIgnoredKey<Key>;
  };
  const auto wanted = [&](int64_t positives, int64_t candidates) {
    // The product in float32 is MXNet's.
    return negatives_wanted<float>(positives, candidates, rules.ratio, rules.min_negatives);
  };
  const auto write = [&](unsigned i, const Key(&of)[kSelectBatch], const bool (&is_hard)[kSelectBatch]) {
    for (unsigned j = 0; j < kSelectBatch && i + j < count; ++j)
      if (of[j] != kPositiveKey<Key>) cls_labels[i + j] = is_hard[j] ? 0 : rules.ignore_label;
  };
  mine_block<Key, kKeep>(count, read, wanted, write, memory);
}

}  // namespace ssd_ops
