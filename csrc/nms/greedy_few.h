// Exact greedy NMS of few boxes on the CPU. Each kept box is compared at once with all that come after it, in
// score order: no grid has to be laid out, and where few boxes are kept, little is compared.
#pragma once

#include <limits>
#include <vector>

#include "common/box_columns.h"
#include "common/simd.h"
#include "nms/prune.h"

namespace ssd_ops {

// Boxes by score. What fills the last lanes is nowhere.
template <typename T>
struct BoxesInOrder {
  const T *x1, *y1, *x2, *y2, *areas;
  typename FloatTraits<T>::Signed* open;  // 1: no kept box overlaps it too much; 0 where one does
};

// Closes those of the boxes begin..end-1 that have an IoU over the threshold with a kept one.
template <typename T>
SSD_HOST_DEVICE void close_over_lanes(const BoxesInOrder<T>& boxes, int64_t begin, int64_t end, Box<T> kept,
                                      T threshold) {
  using Flag = typename FloatTraits<T>::Signed;
  const T* __restrict x1 = boxes.x1;
  const T* __restrict y1 = boxes.y1;
  const T* __restrict x2 = boxes.x2;
  const T* __restrict y2 = boxes.y2;
  const T* __restrict areas = boxes.areas;
  Flag* __restrict open = boxes.open;
  const T kept_area = area(kept), lower = quick_threshold(threshold), upper = sure_threshold(threshold);
  Flag unsure = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T inter = intersection(Box<T>{x1[i], y1[i], x2[i], y2[i]}, kept);
    const T base = base_area(Metric::kIou, inter, areas[i], kept_area);
    const Flag meets = inter > T(0) ? 1 : 0;
    const Flag maybe = inter >= lower * base ? meets : Flag(0);
    const Flag sure = inter > upper * base ? meets : Flag(0);
    open[i] &= sure ^ 1;
    unsure |= maybe ^ sure;
  }
  if (!unsure) return;
  for (int64_t i = begin; i < end; ++i) {
    const T quotient = overlap(Metric::kIou, Box<T>{x1[i], y1[i], x2[i], y2[i]}, areas[i], kept, kept_area);
    open[i] = quotient > threshold ? Flag(0) : open[i];
  }
}

SSD_SIMD(void, close_over,
         (const BoxesInOrder<float>& boxes, int64_t begin, int64_t end, Box<float> kept, float threshold),
         (boxes, begin, end, kept, threshold))
SSD_SIMD(void, close_over,
         (const BoxesInOrder<double>& boxes, int64_t begin, int64_t end, Box<double> kept, double threshold),
         (boxes, begin, end, kept, threshold))

template <typename T>
class FewNms {
 public:
  // As GreedyNms::run. The time grows with the kept boxes times all of them.
  template <typename BoxAt>
  void run(const std::vector<int64_t>& order, const BoxAt& box_at, T threshold, std::vector<int64_t>& kept) {
    const int64_t count = static_cast<int64_t>(order.size()), room = (count + kLanes - 1) / kLanes * kLanes;
    columns_.assign(static_cast<size_t>(room));
    open_.assign(static_cast<size_t>(room), 1);
    for (size_t position = 0; position < order.size(); ++position)
      columns_.set(position, box_at(order[position]));
    const BoxesInOrder<T> boxes{columns_.x1.data(), columns_.y1.data(),    columns_.x2.data(),
                                columns_.y2.data(), columns_.areas.data(), open_.data()};
    for (int64_t position = 0; position < count; ++position) {
      if (!open_[static_cast<size_t>(position)]) continue;
      kept.push_back(position);
      const Box<T> box = columns_.at(static_cast<size_t>(position));
      close_over(boxes, position / kLanes * kLanes, room, box, threshold);
    }
  }

 private:
  BoxColumns<T> columns_;
  std::vector<typename FloatTraits<T>::Signed> open_;
};

}  // namespace ssd_ops
