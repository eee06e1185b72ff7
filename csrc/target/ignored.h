// Regions to ignore, such as a crowd that nobody boxed one by one: assign_anchors and multibox_target.
//
//   ignore_boxes [B, K, 4] xyxy, or none
//
// An anchor without a match is ignored where it overlaps a box of its image, and at least ignore_threshold of
// its own area lies in that box (common/box.h, `lies_in`). The threshold is rounded to the arithmetic's dtype.
// A box without extent, or with an infinite or NaN corner, is padding. What is matched, by force too, stays.
#pragma once

#include <optional>

#include "common/tensor.h"

namespace ssd_ops {

inline void check_ignore_boxes(const char* op,
                               const std::optional<Tensor>& ignore_boxes,  // [B, K, 4]
                               double ignore_threshold, int64_t num_images, const Tensor& anchors) {
  check_fraction(op, "ignore_threshold", ignore_threshold);
  if (!ignore_boxes) return;
  if (ignore_boxes->dim() != 3 || ignore_boxes->size(0) != num_images || ignore_boxes->size(2) != 4)
    fail(op, "ignore_boxes must be [", num_images, ", K, 4], got ", shape_text(*ignore_boxes));
  check_floating(op, "ignore_boxes", *ignore_boxes);
  check_same_device(op, "ignore_boxes", *ignore_boxes, "anchors", anchors);
}

// For the CPU kernels.
template <typename T>
struct IgnoredRegions {
  std::optional<Reader<T>> boxes;
  int64_t num_boxes = 0;  // of an image
  T threshold;

  IgnoredRegions(const std::optional<Tensor>& ignore_boxes,  // [B, K, 4]
                 double ignore_threshold)
      : threshold(static_cast<T>(ignore_threshold)) {
    if (!ignore_boxes) return;
    boxes.emplace(*ignore_boxes);
    num_boxes = ignore_boxes->size(1);
  }
};

}  // namespace ssd_ops
