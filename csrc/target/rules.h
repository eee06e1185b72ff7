// How ground truths are matched to anchors, by semantics: numbers that the CPU and the CUDA kernels share.
#pragma once

#include <cmath>
#include <limits>

#include "common/box.h"
#include "common/semantics.h"

namespace ssd_ops {

// csrc/target/assign_anchors.h says what each does; the numbers stand in its schema.
enum class Force : int64_t { kNone, kBipartite, kArgmax, kLowQuality };

template <typename T>
struct MatchRules {
  T match_from;        // an anchor takes its best ground truth at an IoU of at least this
  T background_below;  // it is background below this, and -2 between the two
  Force force;
  T force_above = -1;  // IoU that a bipartite match has to exceed
};

// Rows [begin, end) of an image.
struct GtRange {
  int64_t begin, end;
};

SSD_HOST_DEVICE int64_t cut_to(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// padded: gt_boxes [B, num_rows, 4] and counts [B] or null; else [num_rows, 4] and offsets [B + 1]. An offset
// below one before it counts as that one, so that no two images share a row.
SSD_HOST_DEVICE GtRange gt_range(bool padded, int64_t num_rows, const int64_t* counts, int64_t image) {
  if (padded) {
    const int64_t count = counts ? cut_to(counts[image], 0, num_rows) : num_rows;
    return {image * num_rows, image * num_rows + count};
  }
  int64_t begin = 0;
  for (int64_t i = 0; i <= image; ++i) begin = cut_to(counts[i], begin, num_rows);
  return {begin, cut_to(counts[image + 1], begin, num_rows)};
}

constexpr double kMxnetMinIou = 1e-6;

// The rules of multibox_target.
template <typename T>
MatchRules<T> rules_of(int64_t semantics, double iou_threshold) {
  const T threshold = static_cast<T>(iou_threshold), infinity = std::numeric_limits<T>::infinity();
  if (semantics == kSemanticsMxnet) {
    // More than the threshold, in a form of "at least"; MXNet takes 0 for none.
    const T from = threshold > 0 ? std::nextafter(threshold, infinity) : infinity;
    return {from, from, Force::kBipartite, static_cast<T>(kMxnetMinIou)};
  }
  return {threshold, threshold, semantics == kSemanticsD2l ? Force::kBipartite : Force::kArgmax};
}

// How many negatives multibox_target mines of `most` candidates.
SSD_HOST_DEVICE int64_t mined_wanted(int64_t num_matched, int64_t most, double ratio, int64_t min_negatives) {
  // The product in float32 is MXNet's; it may exceed any integer.
  const float by_ratio = static_cast<float>(num_matched) * static_cast<float>(ratio);
  const int64_t wanted = by_ratio < static_cast<float>(most) ? static_cast<int64_t>(by_ratio) : most;
  return min_of(max_of(wanted, min_negatives), most);
}

}  // namespace ssd_ops
