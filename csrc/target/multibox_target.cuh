// multibox_target as a Problem of matching.cuh, and the mining of negatives after it.
#pragma once

#include "common/activation.h"
#include "common/block_select.cuh"
#include "common/mining.h"
#include "target/matching.cuh"

namespace ssd_ops {

template <typename Real>
struct TargetProblem {
  using T = Real;

  Input anchors, labels;                   // [A, 4], [B, G, 5]
  int64_t num_anchors, num_gts, num_rows;  // num_gts: of an image, padding included
  MatchRules<T> rules;
  TargetRules<T> target;
  T *offsets, *masks;   // [B, A, 4]
  T* best_ious;         // [B, A], or null
  int64_t* row_values;  // [B, A]: cls_labels

  __device__ Box<T> anchor(int64_t i) const { return load_row<T>(anchors, i); }
  __device__ GtRange range(int64_t image) const { return {image * num_gts, (image + 1) * num_gts}; }
  __device__ bool gt(int64_t row, Box<T>& box) const {
    const int64_t at = row * 5;
    box = {load<T>(labels, at + 1), load<T>(labels, at + 2), load<T>(labels, at + 3),
           load<T>(labels, at + 4)};
    return is_ground_truth(load<T>(labels, at), box, target.semantics);
  }
  __device__ void write(int64_t image, int64_t i, Box<T> anchor_box, int64_t matched, T iou) const {
    const int64_t at = image * num_anchors + i;
    Box<T> offset{0, 0, 0, 0}, mask{0, 0, 0, 0};
    int64_t label = matched == kNoGts ? target.label_without_gts : 0;
    if (matched >= 0) {
      Box<T> box;
      gt(matched, box);
      const Offset<T> o = encode(box, anchor_box, target.variances, target.eps);
      offset = {o.x, o.y, o.w, o.h};
      mask = {1, 1, 1, 1};
      label = static_cast<int64_t>(load<T>(labels, matched * 5)) + 1;
    }
    store_row(offsets, at, offset);
    store_row(masks, at, mask);
    row_values[at] = label;
    if (best_ious) best_ious[at] = iou;
  }
};

constexpr int kBackgroundThreads = 256;

// Keys of the probability of background: the lowest probability has the smallest key.
template <typename T>
__global__ void __launch_bounds__(kBackgroundThreads)
    background_keys(Input cls_preds,  // [B, C+1, A]
                    int64_t num_images, int64_t num_classes, int64_t num_anchors,
                    typename FloatTraits<T>::Bits* keys) {  // [B, A]
  const int64_t at = global_index();
  if (at >= num_images * num_anchors) return;
  const int64_t first = at / num_anchors * num_classes * num_anchors + at % num_anchors;
  const auto logit = [&](int64_t c) { return load<T>(cls_preds, first + c * num_anchors); };
  keys[at] = loss_key(-probability(softmax_of<T>(logit, num_classes), logit(0)));
}

// Leaves class 0 only to the negatives that look least like background: one block for each image.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    mine_negatives(MiningRules rules, int64_t count,
                   const T* best_ious,                         // [B, count]
                   const typename FloatTraits<T>::Bits* keys,  // [B, count]
                   const T* masks,                             // [B, count, 4]
                   int64_t* cls_labels) {                      // [B, count]
  using Key = typename FloatTraits<T>::Bits;
  __shared__ SelectSpace space;
  __shared__ unsigned num_matched, num_candidates;
  const int64_t first = blockIdx.x * count;
  const auto is_matched = [&](int64_t i) { return masks[4 * (first + i)] != T(0); };
  const auto is_candidate = [&](int64_t i) {
    return !is_matched(i) && best_ious[first + i] < static_cast<T>(rules.threshold);
  };
  if (threadIdx.x == 0) num_matched = num_candidates = 0;
  __syncthreads();
  for (int64_t begin = 0; begin < count; begin += kSelectThreads) {
    const int64_t i = begin + threadIdx.x;
    const bool matched = i < count && is_matched(i);
    const unsigned matched_lanes = __ballot_sync(kAllLanes, matched);
    const unsigned candidate_lanes = __ballot_sync(kAllLanes, i < count && is_candidate(i));
    if (lane_index() == 0) {
      atomicAdd(&num_matched, static_cast<unsigned>(__popc(matched_lanes)));
      atomicAdd(&num_candidates, static_cast<unsigned>(__popc(candidate_lanes)));
    }
    if (i < count && !matched) cls_labels[first + i] = rules.ignore_label;
  }
  __syncthreads();
  block_select<Key>(
      count, num_candidates,
      // The product in float32 is MXNet's.
      negatives_wanted<float>(num_matched, num_candidates, rules.ratio, rules.min_negatives),
      [&](int64_t i, Key& key) {
        key = keys[first + i];
        return is_candidate(i);
      },
      [&](int64_t i, int64_t) { cls_labels[first + i] = 0; }, space);
}

}  // namespace ssd_ops
