// Exact greedy NMS on the CPU: of boxes in score order, keeps each that no kept one overlaps too much.
//
// A box is tested only against kept boxes, newest first (boxes of like score lie close together), and
// only against those that could overlap it enough: kept boxes are filed by center in a grid (nms/prune.h).
// Memory is linear in the boxes.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/simd.h"
#include "nms/prune.h"

namespace ssd_ops {

// The kept boxes, filed by cell: those of cell c are at starts[c] .. starts[c] + used[c]. A cell's slots
// are a multiple of kLanes, and the empty ones overlap nothing.
template <typename T>
struct KeptBoxes {
  const T *x1, *y1, *x2, *y2, *areas;
  const int64_t *starts, *used;
};

constexpr int64_t kChunk = 16 * kLanes;  // kept boxes tested before the next look at the result

// True where a kept box of cells first..last overlaps `box` by an IoU over the threshold.
template <typename T>
SSD_HOST_DEVICE bool any_over_lanes(const KeptBoxes<T>& kept, int64_t first, int64_t last, Box<T> box,
                                    T threshold) {
  using Flag = typename FloatTraits<T>::Signed;
  const T* __restrict x1 = kept.x1;
  const T* __restrict y1 = kept.y1;
  const T* __restrict x2 = kept.x2;
  const T* __restrict y2 = kept.y2;
  const T* __restrict areas = kept.areas;
  const T box_area = area(box);
  const T lower = quick_threshold(threshold);
  for (int64_t c = first; c <= last; ++c) {
    const int64_t start = kept.starts[c];
    for (int64_t used = (kept.used[c] + kLanes - 1) / kLanes * kLanes; used > 0; used -= kChunk) {
      const int64_t begin = start + max_of<int64_t>(used - kChunk, 0), end = start + used;
      Flag maybe = 0;
      for (int64_t i = begin; i < end; ++i) {
        const T inter = intersection(Box<T>{x1[i], y1[i], x2[i], y2[i]}, box);
        const Flag enough = inter >= lower * ((areas[i] + box_area) - inter) ? 1 : 0;
        maybe |= inter > T(0) ? enough : Flag(0);
      }
      if (!maybe) continue;
      Flag over = 0;
      for (int64_t i = begin; i < end; ++i) {
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
  void run(const std::vector<int64_t>& order, const BoxAt& box_at, T threshold, std::vector<int64_t>& kept) {
    kept.clear();
    boxes_.clear();
    for (const int64_t index : order) boxes_.push_back(box_at(index));
    lay_out_grid(threshold);
    for (size_t position = 0; position < boxes_.size(); ++position) {
      const Box<T> box = boxes_[position];
      const T box_area = area(box);
      if (!can_overlap(box, box_area)) {
        kept.push_back(static_cast<int64_t>(position));
      } else if (!is_over(box, threshold)) {
        kept.push_back(static_cast<int64_t>(position));
        file(box, box_area);
      }
    }
  }

 private:
  static constexpr size_t kBoxesPerCell = 128;
  static constexpr int64_t kMaxSide = 256;  // cells along one side

  // A cell's room is the number of boxes whose center lies in it, so that filing never moves anything.
  void lay_out_grid(T threshold) {
    double right = std::numeric_limits<double>::lowest(), bottom = right;
    double left = std::numeric_limits<double>::max(), top = left;
    size_t active = 0;
    for (const Box<T>& box : boxes_) {
      if (!can_overlap(box, area(box))) continue;
      ++active;
      left = std::min(left, center_x(box));
      right = std::max(right, center_x(box));
      top = std::min(top, center_y(box));
      bottom = std::max(bottom, center_y(box));
    }
    side_ = 1;
    if (threshold >= T(kMinPruned))
      while (side_ < kMaxSide && static_cast<size_t>((side_ + 1) * (side_ + 1)) * kBoxesPerCell <= active)
        ++side_;
    columns_ = grid_axis(left, right, side_);
    rows_ = grid_axis(top, bottom, side_);
    reach_ = threshold >= T(kMinPruned) ? nms_reach(threshold) : 0;

    starts_.assign(static_cast<size_t>(side_ * side_ + 1), 0);
    used_.assign(static_cast<size_t>(side_ * side_), 0);
    for (const Box<T>& box : boxes_)
      if (can_overlap(box, area(box))) ++starts_[static_cast<size_t>(cell(box)) + 1];
    for (size_t c = 1; c < starts_.size(); ++c)
      starts_[c] = starts_[c - 1] + (starts_[c] + kLanes - 1) / kLanes * kLanes;
    const size_t room = static_cast<size_t>(starts_.back());
    // Empty slots overlap nothing: they end before they begin.
    x1_.assign(room, std::numeric_limits<T>::max());
    y1_.assign(room, std::numeric_limits<T>::max());
    x2_.assign(room, std::numeric_limits<T>::lowest());
    y2_.assign(room, std::numeric_limits<T>::lowest());
    areas_.assign(room, T(0));
  }

  int64_t cell(Box<T> box) const {
    return rows_.cell(center_y(box)) * side_ + columns_.cell(center_x(box));
  }

  void file(Box<T> box, T box_area) {
    const size_t c = static_cast<size_t>(cell(box));
    const size_t slot = static_cast<size_t>(starts_[c] + used_[c]++);
    x1_[slot] = box.x1;
    y1_[slot] = box.y1;
    x2_[slot] = box.x2;
    y2_[slot] = box.y2;
    areas_[slot] = box_area;
  }

  bool is_over(Box<T> box, T threshold) const {
    int64_t first_row = 0, last_row = side_ - 1, first_column = 0, last_column = side_ - 1;
    if (side_ > 1) {
      const double rx = reach_ * (static_cast<double>(box.x2) - static_cast<double>(box.x1));
      const double ry = reach_ * (static_cast<double>(box.y2) - static_cast<double>(box.y1));
      first_column = columns_.cell(center_x(box) - rx);
      last_column = columns_.cell(center_x(box) + rx);
      first_row = rows_.cell(center_y(box) - ry);
      last_row = rows_.cell(center_y(box) + ry);
    }
    const KeptBoxes<T> kept{x1_.data(),    y1_.data(),     x2_.data(),  y2_.data(),
                            areas_.data(), starts_.data(), used_.data()};
    // What suppresses a box most often has its center close by.
    if (side_ > 1 && any_over(kept, cell(box), cell(box), box, threshold)) return true;
    for (int64_t r = first_row; r <= last_row; ++r)
      if (any_over(kept, r * side_ + first_column, r * side_ + last_column, box, threshold)) return true;
    return false;
  }

  std::vector<Box<T>> boxes_;
  int64_t side_ = 1;
  GridAxis columns_{}, rows_{};
  double reach_ = 0;
  std::vector<int64_t> starts_, used_;
  std::vector<T> x1_, y1_, x2_, y2_, areas_;
};

}  // namespace ssd_ops
