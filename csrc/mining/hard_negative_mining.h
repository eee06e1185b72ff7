// hard_negative_mining: the positives, and of the negatives of each image those with the highest loss.
//
//   losses [B, A]; cls_labels [B, A] int64: above 0 positive, 0 negative, below 0 ignored
//   -> selected [B, A] bool
//
// An image with P positives selects max(floor(ratio * P), min_negatives) negatives, or all there are.
// Equal losses go to the lower anchor. A NaN loss counts as the highest, so that it shows in the sum.
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

inline void check_hard_negative_mining(const Tensor& losses,      // [B, A]
                                       const Tensor& cls_labels,  // [B, A] int64
                                       double ratio, int64_t min_negatives) {
  constexpr const char* op = "hard_negative_mining";
  check_shape(losses.dim() == 2, op, "losses", "[B, A]", losses);
  check_shape(
      cls_labels.dim() == 2 && cls_labels.size(0) == losses.size(0) && cls_labels.size(1) == losses.size(1),
      op, "cls_labels", "[B, A] like losses", cls_labels);
  check_floating(op, "losses", losses);
  check_integer(op, "cls_labels", cls_labels);
  check_same_device(op, "cls_labels", cls_labels, "losses", losses);
  check_not_negative(op, "ratio", ratio);
  check_not_negative(op, "min_negatives", min_negatives);
}

}  // namespace ssd_ops
