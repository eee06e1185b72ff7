// NMS of one image on the CPU, as nms and nms_padded do it.
#pragma once

#include "common/order.h"
#include "common/tensor.h"
#include "nms/best_first.h"
#include "nms/greedy.h"

namespace ssd_ops {

// T for the boxes, S for the scores (common/tensor.h, `dispatch_boxes_and_scores`). It keeps its room for the
// next image.
template <typename T, typename S>
class ImageNms {
 public:
  explicit ImageNms(bool uses_threads) : greedy_(uses_threads) {}

  // The indices of the kept boxes of image `image`, by score.
  const std::vector<int64_t>& run(const Reader<T>& boxes,   // [B, count, 4]
                                  const Reader<S>& scores,  // [B, count]
                                  int64_t image, int64_t count, OverlapLimit<T> limit) {
    const T* rows = boxes.read(4 * image * count, 4 * count, box_buffer_);
    read_keys(scores.read(image * count, count, score_buffer_), count, keys_);
    kept_.clear();
    if (limit.metric == Metric::kIou) best_first_.run(rows, count, limit.threshold, keys_, kept_);
    sort_keys(keys_, order_);
    greedy_.run(order_, [&](int64_t i) { return load_box(rows + 4 * i); }, limit, kept_of_rest_);
    kept_.reserve(kept_.size() + kept_of_rest_.size());
    for (const int64_t position : kept_of_rest_) kept_.push_back(order_[static_cast<size_t>(position)]);
    return kept_;
  }

 private:
  using Key = typename FloatTraits<S>::Bits;

  std::vector<T> box_buffer_;
  std::vector<S> score_buffer_;
  std::vector<Key> keys_;
  std::vector<int64_t> order_, kept_, kept_of_rest_;
  BestFirst<T, Key> best_first_;
  GreedyNms<T> greedy_;
};

}  // namespace ssd_ops
