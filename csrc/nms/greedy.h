// Exact greedy NMS on the CPU: of boxes in score order, keeps each that no kept one overlaps too much.
//
// A box is tested only against kept boxes, newest first (boxes of like score lie close together), and
// only against those that could overlap it enough: kept boxes are filed by center in a grid (nms/prune.h).
// Memory is linear in the boxes. By IoS, boxes of all sizes suppress each other, and the other way round is
// quicker (nms/greedy_groups.h).
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/box_columns.h"
#include "common/simd.h"
#include "nms/greedy_few.h"
#include "nms/greedy_groups.h"

namespace ssd_ops {

// The kept boxes, filed by cell: those of cell c are at starts[c] .. starts[c] + used[c]. A cell's slots
// are a multiple of kLanes, and the empty ones overlap nothing.
template <typename T>
struct KeptBoxes {
  const T *x1, *y1, *x2, *y2, *areas;
  const int64_t *starts, *used;
};

constexpr int64_t kChunk = 16;  // kept boxes, times kLanes, tested before the next look at the result

// True where a kept box of cells first..last overlaps `box` by an IoU over the threshold.
template <typename T>
SSD_HOST_DEVICE bool any_over_lanes(const KeptBoxes<T>& kept, int64_t first, int64_t last, Box<T> box,
                                    T threshold) {
  using Flag = typename FloatTraits<T>::Signed;
  const T box_area = area(box);
  const T lower = quick_threshold(threshold);
  for (int64_t c = first; c <= last; ++c) {
    // Counted in whole vectors, which spares the compiler's loops a remainder.
    for (int64_t left = (kept.used[c] + kLanes - 1) / kLanes; left > 0; left -= kChunk) {
      const int64_t begin = kept.starts[c] + max_of<int64_t>(left - kChunk, 0) * kLanes;
      const int64_t count = min_of(left, kChunk) * kLanes;
      const T* __restrict x1 = kept.x1 + begin;
      const T* __restrict y1 = kept.y1 + begin;
      const T* __restrict x2 = kept.x2 + begin;
      const T* __restrict y2 = kept.y2 + begin;
      const T* __restrict areas = kept.areas + begin;
      Flag maybe = 0;
      for (int64_t i = 0; i < count; ++i) {
        const T inter = intersection(Box<T>{x1[i], y1[i], x2[i], y2[i]}, box);
        const Flag enough = inter >= lower * ((areas[i] + box_area) - inter) ? 1 : 0;
        maybe |= inter > T(0) ? enough : Flag(0);
      }
      if (!maybe) continue;
      Flag over = 0;
      for (int64_t i = 0; i < count; ++i) {
        const Box<T> other{x1[i], y1[i], x2[i], y2[i]};
        over |= iou(other, areas[i], box, box_area) > threshold ? Flag(1) : Flag(0);
      }
      if (over) return true;
    }
  }
  return false;
}

SSD_SIMD(bool, any_over,
         (const KeptBoxes<float>& kept, int64_t first, int64_t last, Box<float> box, float threshold),
         (kept, first, last, box, threshold))
SSD_SIMD(bool, any_over,
         (const KeptBoxes<double>& kept, int64_t first, int64_t last, Box<double> box, double threshold),
         (kept, first, last, box, threshold))

template <typename T>
class GreedyNms {
 public:
  // `kept` gets the positions in `order` of the boxes kept, ascending. box_at(i) is the box of index i.
  template <typename BoxAt>
  void run(const std::vector<int64_t>& order, const BoxAt& box_at, OverlapLimit<T> limit,
           std::vector<int64_t>& kept) {
    kept.clear();
    if (limit.metric == Metric::kIos) {
      groups_.run(order, box_at, limit, taken_by_);
      for (size_t position = 0; position < taken_by_.size(); ++position)
        if (taken_by_[position] == static_cast<int64_t>(position)) kept.push_back(taken_by_[position]);
      return;
    }
    const T threshold = limit.threshold;
    if (order.size() <= kFew) {
      few_.run(order, box_at, threshold, kept);
      return;
    }
    boxes_.clear();
    boxes_.reserve(order.size());
    for (const int64_t index : order) boxes_.push_back(box_at(index));
    lay_out_grid(threshold);
    for (size_t position = 0; position < boxes_.size(); ++position) {
      const Box<T> box = boxes_[position];
      const int64_t cell = cells_[position];
      if (cell >= 0) {
        if (is_over(box, cell, threshold)) continue;
        file(box, static_cast<size_t>(cell));
      }
      kept.push_back(static_cast<int64_t>(position));
    }
  }

 private:
  static constexpr size_t kFew = 512;  // boxes: for more, a grid pays
  static constexpr size_t kBoxesPerCell = 128;
  static constexpr int64_t kMaxSide = 256;  // cells along one side
  // Cells along a box of mean size, at most: more would only make each box look into more of them. Where all
  // boxes lie in one pile, one cell is left.
  static constexpr double kCellsPerSize = 2;

  // A cell's room is the number of boxes whose center lies in it, so that filing never moves anything.
  void lay_out_grid(T threshold) {
    double right = std::numeric_limits<double>::lowest(), bottom = right;
    double left = std::numeric_limits<double>::max(), top = left;
    double widths = 0, heights = 0;
    size_t active = 0;
    for (const Box<T>& box : boxes_) {
      if (!can_overlap(box, area(box))) continue;
      ++active;
      widths += width(box);
      heights += height(box);
      left = std::min(left, center_x(box));
      right = std::max(right, center_x(box));
      top = std::min(top, center_y(box));
      bottom = std::max(bottom, center_y(box));
    }
    side_ = 1;
    const double sizes =
        static_cast<double>(active) * std::max((right - left) / widths, (bottom - top) / heights);
    if (threshold >= T(kMinPruned))
      while (side_ < kMaxSide && static_cast<double>(side_) < kCellsPerSize * sizes &&
             static_cast<size_t>((side_ + 1) * (side_ + 1)) * kBoxesPerCell <= active)
        ++side_;
    grid_ = {grid_axis(left, right, side_), grid_axis(top, bottom, side_)};
    reach_ = threshold >= T(kMinPruned) ? nms_reach(threshold) : 0;

    starts_.assign(static_cast<size_t>(side_ * side_ + 1), 0);
    used_.assign(static_cast<size_t>(side_ * side_), 0);
    cells_.clear();
    cells_.reserve(boxes_.size());
    for (const Box<T>& box : boxes_) {
      int64_t cell = -1;
      if (can_overlap(box, area(box))) cell = grid_.cell(box);
      cells_.push_back(cell);
      if (cell >= 0) ++starts_[static_cast<size_t>(cell) + 1];
    }
    for (size_t c = 1; c < starts_.size(); ++c)
      starts_[c] = starts_[c - 1] + (starts_[c] + kLanes - 1) / kLanes * kLanes;
    slots_.assign(static_cast<size_t>(starts_.back()));
  }

  void file(Box<T> box, size_t cell) { slots_.set(static_cast<size_t>(starts_[cell] + used_[cell]++), box); }

  bool is_over(Box<T> box, int64_t cell, T threshold) const {
    const KeptBoxes<T> kept{slots_.x1.data(),    slots_.y1.data(), slots_.x2.data(), slots_.y2.data(),
                            slots_.areas.data(), starts_.data(),   used_.data()};
    // What suppresses a box most often has its center close by.
    if (any_over(kept, cell, cell, box, threshold)) return true;
    if (side_ == 1) return false;
    const CellRange cells = grid_.around(box, area(box), reach_);
    for (int64_t row = cells.top; row <= cells.bottom; ++row)
      if (any_over(kept, row * side_ + cells.left, row * side_ + cells.right, box, threshold)) return true;
    return false;
  }

  std::vector<Box<T>> boxes_;
  int64_t side_ = 1;
  BoxGrid grid_{};
  double reach_ = 0;
  std::vector<int64_t> cells_;  // of each box, or -1 where it cannot overlap any
  std::vector<int64_t> starts_, used_;
  BoxColumns<T> slots_;
  FewNms<T> few_;
  GreedyGroups<T> groups_;
  std::vector<int64_t> taken_by_;  // what groups_ says
};

}  // namespace ssd_ops
