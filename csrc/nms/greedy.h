// Exact greedy NMS on the CPU: of boxes in score order, keeps each that no kept one overlaps too much.
//
// A box is tested only against kept boxes, newest first (boxes of like score lie close together), and
// only against those that could overlap it enough. For IoU > t both w_overlap > t * max(w1, w2) and
// w_overlap <= (w1 + w2) / 2 - |cx1 - cx2| hold, so |cx1 - cx2| < (1 - t) * max(w1, w2) and
// max(w1, w2) < w1 / t; the same for heights. So kept boxes are filed by center in a grid, and a box looks
// at the cells within (1 / t - 1) of its own size. The bound is widened far beyond rounding, and not used
// where an area is subnormal; the exact test decides. Memory is linear in the boxes.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/box.h"
#include "common/simd.h"

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
  // fl(inter / union) > t needs inter >= fl(lower * union) for any lower < t * (1 - 2^-23): rounding is
  // monotone, and inter is representable. That spares nearly all divisions; the exact test decides.
  const T lower = threshold * static_cast<T>(1 - 1e-6);
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
  void run(const std::vector<int64_t>& order, const BoxAt& box_at, T threshold, std::vector<int64_t>& kept) {
    kept.clear();
    boxes_.clear();
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
  static constexpr size_t kBoxesPerCell = 128;
  static constexpr int64_t kMaxSide = 256;  // cells along one side
  static constexpr double kWiden = 1.001;
  static constexpr double kMinPruned = 0.01;  // below this threshold every cell may matter

  // A box whose area is 0, infinite or NaN has IoU 0 with every other: it is kept and suppresses nothing.
  static bool can_overlap(Box<T> box, T box_area) {
    return box_area > T(0) && box_area <= std::numeric_limits<T>::max() && box.x2 > box.x1 && box.y2 > box.y1;
  }

  static double center_x(Box<T> b) { return 0.5 * (static_cast<double>(b.x1) + static_cast<double>(b.x2)); }
  static double center_y(Box<T> b) { return 0.5 * (static_cast<double>(b.y1) + static_cast<double>(b.y2)); }

  int64_t column(double x) const { return cell_of((x - left_) * per_x_); }
  int64_t row(double y) const { return cell_of((y - top_) * per_y_); }
  // Clamped before the conversion, which is undefined outside the integer's range.
  int64_t cell_of(double at) const {
    return static_cast<int64_t>(std::min(std::max(at, 0.0), static_cast<double>(side_ - 1)));
  }

  // A cell's room is the number of boxes whose center lies in it, so that filing never moves anything.
  void lay_out_grid(T threshold) {
    double right = std::numeric_limits<double>::lowest(), bottom = right;
    left_ = top_ = std::numeric_limits<double>::max();
    size_t active = 0;
    for (const Box<T>& box : boxes_) {
      if (!can_overlap(box, area(box))) continue;
      ++active;
      left_ = std::min(left_, center_x(box));
      right = std::max(right, center_x(box));
      top_ = std::min(top_, center_y(box));
      bottom = std::max(bottom, center_y(box));
    }
    side_ = 1;
    if (threshold >= T(kMinPruned))
      while (side_ < kMaxSide && static_cast<size_t>((side_ + 1) * (side_ + 1)) * kBoxesPerCell <= active)
        ++side_;
    per_x_ = right > left_ ? static_cast<double>(side_) / (right - left_) : 0;
    per_y_ = bottom > top_ ? static_cast<double>(side_) / (bottom - top_) : 0;
    reach_ = threshold >= T(kMinPruned) ? (1 / static_cast<double>(threshold) - 1) * kWiden + 1e-6 : 0;

    starts_.assign(static_cast<size_t>(side_ * side_ + 1), 0);
    used_.assign(static_cast<size_t>(side_ * side_), 0);
    cells_.clear();
    for (const Box<T>& box : boxes_) {
      const int64_t cell = can_overlap(box, area(box)) ? row(center_y(box)) * side_ + column(center_x(box)) : -1;
      cells_.push_back(cell);
      if (cell >= 0) ++starts_[static_cast<size_t>(cell) + 1];
    }
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

  void file(Box<T> box, size_t cell) {
    const size_t slot = static_cast<size_t>(starts_[cell] + used_[cell]++);
    x1_[slot] = box.x1;
    y1_[slot] = box.y1;
    x2_[slot] = box.x2;
    y2_[slot] = box.y2;
    areas_[slot] = area(box);
  }

  bool is_over(Box<T> box, int64_t cell, T threshold) const {
    const KeptBoxes<T> kept{x1_.data(),    y1_.data(),     x2_.data(),  y2_.data(),
                            areas_.data(), starts_.data(), used_.data()};
    // What suppresses a box most often has its center close by.
    if (any_over(kept, cell, cell, box, threshold)) return true;
    if (side_ == 1) return false;
    int64_t first_row = 0, last_row = side_ - 1, first_column = 0, last_column = side_ - 1;
    // An area below the normal numbers is so coarse that an IoU over the threshold bounds no distance.
    if (area(box) >= std::numeric_limits<T>::min()) {
      const double rx = reach_ * (static_cast<double>(box.x2) - static_cast<double>(box.x1));
      const double ry = reach_ * (static_cast<double>(box.y2) - static_cast<double>(box.y1));
      first_column = column(center_x(box) - rx);
      last_column = column(center_x(box) + rx);
      first_row = row(center_y(box) - ry);
      last_row = row(center_y(box) + ry);
    }
    for (int64_t r = first_row; r <= last_row; ++r)
      if (any_over(kept, r * side_ + first_column, r * side_ + last_column, box, threshold)) return true;
    return false;
  }

  std::vector<Box<T>> boxes_;
  int64_t side_ = 1;
  double left_ = 0, top_ = 0, per_x_ = 0, per_y_ = 0, reach_ = 0;
  std::vector<int64_t> cells_;  // of each box, or -1 where it cannot overlap any
  std::vector<int64_t> starts_, used_;
  std::vector<T> x1_, y1_, x2_, y2_, areas_;
};

}  // namespace ssd_ops
