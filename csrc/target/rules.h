// How ground truths are matched to anchors: what the CPU and the CUDA kernels share. No torch header.
#pragma once

#include <cmath>
#include <limits>

#include "common/box.h"
#include "common/semantics.h"

namespace ssd_ops {

// target/assign_anchors.h says what each does; the numbers stand in its schema.
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

// Where the ground truths of each image lie in the gt_boxes of assign_anchors.
struct GtLayout {
  int64_t num_images;
  int64_t num_rows;       // G where padded, else N
  bool padded;            // gt_boxes are [B, G, 4], else [N, 4]
  const int64_t* counts;  // [B] or null where padded, else offsets [B + 1]

  // An offset below one before it counts as that one, so that no two images share a row.
  SSD_HOST_DEVICE GtRange range(int64_t image) const {
    if (padded) {
      const int64_t count = counts ? cut_to(counts[image], 0, num_rows) : num_rows;
      return {image * num_rows, image * num_rows + count};
    }
    int64_t begin = 0;
    for (int64_t i = 0; i <= image; ++i) begin = cut_to(counts[i], begin, num_rows);
    return {begin, cut_to(counts[image + 1], begin, num_rows)};
  }
};

// Whether a row (class, box) of the labels of multibox_target is a ground truth; if not, it is padding.
// Classes past 2^60 cannot be told apart in a float. torchvision refuses boxes without area; here they are
// padding.
template <typename T>
SSD_HOST_DEVICE bool is_ground_truth(T cls, Box<T> box, Semantics semantics) {
  constexpr T kMaxClass = static_cast<T>(int64_t{1} << 60);
  const bool usable = semantics == Semantics::kTorchvision ? has_extent(box) : is_proper(box);
  return cls >= T(0) && cls < kMaxClass && usable;
}

// How multibox_target writes its targets.
template <typename T>
struct TargetRules {
  Semantics semantics;
  Encoding<T> encoding;
  int64_t label_without_gts;  // the class of every anchor in an image without ground truths
};

template <typename T>
TargetRules<T> target_rules(Semantics semantics, Variances<T> variances, int64_t coding,
                            int64_t ignore_label) {
  // The book adds this inside the logarithm.
  const T eps = semantics == Semantics::kD2l ? static_cast<T>(1e-6) : T(0);
  return {semantics,
          {static_cast<Coding>(coding), variances, eps},
          semantics == Semantics::kMxnet ? ignore_label : 0};
}

// How multibox_target matches.
template <typename T>
MatchRules<T> match_rules(Semantics semantics, double iou_threshold) {
  const T threshold = static_cast<T>(iou_threshold), infinity = std::numeric_limits<T>::infinity();
  if (semantics == Semantics::kMxnet) {
    constexpr double kMinIou = 1e-6;
    // MXNet wants more than the threshold, which is at least the next number; 0 switches matching off.
    const T from = threshold > 0 ? std::nextafter(threshold, infinity) : infinity;
    return {from, from, Force::kBipartite, static_cast<T>(kMinIou)};
  }
  return {threshold, threshold, semantics == Semantics::kD2l ? Force::kBipartite : Force::kArgmax};
}

// How multibox_target mines negatives.
struct MiningRules {
  double ratio, threshold;  // ratio -1: off
  int64_t min_negatives, ignore_label;

  bool is_on() const { return ratio != -1; }
};

}  // namespace ssd_ops
