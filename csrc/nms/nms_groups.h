// nms_groups: for each box the kept box that suppressed it.
//
//   boxes [..., N, 4] xyxy, any unit; scores [..., N]; idxs [..., N] int64 or none: only boxes of one class
//   suppress each other -> groups [..., N] int64
//
// A box that nms (batched_nms, with idxs) keeps has its own index. Any other has the index of the kept box of
// highest score, the first on ties, that overlaps it more than iou_threshold: in a loop that takes the best
// box and removes what it overlaps, the box that removes this one. It always comes before this one: else it
// would not be the first that could. A box with a NaN score has -1.
#pragma once

#include <optional>

#include "nms/nms.h"

namespace ssd_ops {

inline void check_nms_groups(const Tensor& boxes,                // [..., N, 4]
                             const Tensor& scores,               // [..., N]
                             const std::optional<Tensor>& idxs,  // [..., N] int64
                             double iou_threshold, int64_t metric) {
  constexpr const char* op = "nms_groups";
  const int64_t rank = boxes.dim();
  check_shape(rank >= 2 && boxes.size(rank - 1) == 4, op, "boxes", "[..., N, 4]", boxes);
  const auto one_a_box = [&](const Tensor& t) {
    bool same = t.dim() == rank - 1;
    for (int64_t i = 0; same && i < rank - 1; ++i) same = t.size(i) == boxes.size(i);
    return same;
  };
  check_shape(one_a_box(scores), op, "scores", "[..., N] with the sizes of boxes", scores);
  check_values(op, boxes, scores, iou_threshold, metric);
  if (!idxs) return;
  check_shape(one_a_box(*idxs), op, "idxs", "[..., N] with the sizes of boxes", *idxs);
  check_integer(op, "idxs", *idxs);
  check_same_device(op, "idxs", *idxs, "boxes", boxes);
}

// The result [..., N], not yet written.
inline Tensor new_groups(const Tensor& boxes) {  // [..., N, 4]
  return new_integers(boxes, {boxes.sizes().begin(), boxes.sizes().end() - 1});
}

}  // namespace ssd_ops
