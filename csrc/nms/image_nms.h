// NMS of one image on the CPU, as nms and nms_padded do it.
#pragma once

#include "common/order.h"
#include "common/tensor.h"
#include "nms/greedy.h"

namespace ssd_ops {

// T for the boxes, S for the scores (common/tensor.h, `dispatch_boxes_and_scores`).
template <typename T, typename S>
class ImageNms {
 public:
  explicit ImageNms(OverlapLimit<T> limit) : limit_(limit) {}

  // The indices of the kept boxes of image `image`, by score.
  const std::vector<int64_t>& run(const Reader<T>& boxes,   // [B, count, 4]
                                  const Reader<S>& scores,  // [B, count]
                                  int64_t image, int64_t count) {
    sort_descending(scores.read(image * count, count, score_buffer_), count, order_);
    const T* rows = boxes.read(4 * image * count, 4 * count, box_buffer_);
    greedy_.run(order_, [&](int64_t i) { return load_box(rows + 4 * i); }, limit_, kept_);
    for (int64_t& position : kept_) position = order_[position];
    return kept_;
  }

 private:
  OverlapLimit<T> limit_;
  std::vector<T> box_buffer_;
  std::vector<S> score_buffer_;
  std::vector<int64_t> order_, kept_;
  GreedyNms<T> greedy_;
};

}  // namespace ssd_ops
