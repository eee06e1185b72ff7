// Exact greedy NMS on the CPU that says which box suppressed which: takes the first box in score order and all
// that it overlaps too much, then the first of those that are left, and so on.
//
// All boxes are filed by center in grids (nms/prune.h). What is taken leaves its cell, so every box is taken
// once, and looked at only by boxes close to it that come before. Memory is linear in the boxes.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/box_columns.h"
#include "common/simd.h"
#include "nms/prune.h"

namespace ssd_ops {

// The boxes that are not taken, by cell: those of cell c are at starts[c] .. starts[c] + used[c]. A cell's
// slots are a multiple of kLanes, and the empty ones overlap nothing.
template <typename T>
struct OpenBoxes {
  T *x1, *y1, *x2, *y2, *areas;
  int64_t* positions;  // of the boxes by score
  const int64_t* starts;
  int64_t* used;

  void put(int64_t i, Box<T> box, T box_area, int64_t position) const {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    areas[i] = box_area;
    positions[i] = position;
  }
  SSD_HOST_DEVICE Box<T> at(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }

  void file(int64_t cell, Box<T> box, int64_t position) const {
    put(starts[cell] + used[cell]++, box, area(box), position);
  }
  // The last box of the cell comes in the place of this one.
  void take_out(int64_t cell, int64_t i) const {
    const int64_t last = starts[cell] + --used[cell];
    put(i, at(last), areas[last], positions[last]);
    put(last, nowhere<T>(), T(0), -1);
  }
};

template <Metric kMetric, typename T>
SSD_HOST_DEVICE int64_t take_over_cells(const OpenBoxes<T>& open, int64_t first, int64_t last, Box<T> box,
                                        T threshold, int64_t* taken) {
  using Flag = typename FloatTraits<T>::Signed;
  const T box_area = area(box);
  const T lower = quick_threshold(threshold);
  int64_t count = 0;
  for (int64_t c = first; c <= last; ++c) {
    // From the end on, so that what comes in the place of a box has been looked at.
    for (int64_t left = (open.used[c] + kLanes - 1) / kLanes; left > 0; --left) {
      const int64_t begin = open.starts[c] + (left - 1) * kLanes;
      const T* __restrict x1 = open.x1 + begin;
      const T* __restrict y1 = open.y1 + begin;
      const T* __restrict x2 = open.x2 + begin;
      const T* __restrict y2 = open.y2 + begin;
      const T* __restrict areas = open.areas + begin;
      Flag maybe = 0;
      for (int64_t i = 0; i < kLanes; ++i) {
        const T inter = intersection(Box<T>{x1[i], y1[i], x2[i], y2[i]}, box);
        const Flag enough = inter >= lower * base_area(kMetric, inter, areas[i], box_area) ? 1 : 0;
        maybe |= inter > T(0) ? enough : Flag(0);
      }
      if (!maybe) continue;
      Flag over[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        over[i] = overlap(kMetric, Box<T>{x1[i], y1[i], x2[i], y2[i]}, areas[i], box, box_area) > threshold;
      for (int64_t i = kLanes - 1; i >= 0; --i) {
        if (!over[i]) continue;
        taken[count++] = open.positions[begin + i];
        open.take_out(c, begin + i);
      }
    }
  }
  return count;
}

// Takes the boxes of cells first..last that overlap `box` beyond the limit out of their cells. Their positions
// go to `taken`, which has room for all; returns how many they are.
template <typename T>
SSD_HOST_DEVICE int64_t take_over_lanes(const OpenBoxes<T>& open, int64_t first, int64_t last, Box<T> box,
                                        OverlapLimit<T> limit, int64_t* taken) {
  if (limit.metric == Metric::kIos)
    return take_over_cells<Metric::kIos>(open, first, last, box, limit.threshold, taken);
  return take_over_cells<Metric::kIou>(open, first, last, box, limit.threshold, taken);
}

SSD_SIMD(int64_t, take_over,
         (const OpenBoxes<float>& open, int64_t first, int64_t last, Box<float> box,
          OverlapLimit<float> limit, int64_t* taken),
         (open, first, last, box, limit, taken))
SSD_SIMD(int64_t, take_over,
         (const OpenBoxes<double>& open, int64_t first, int64_t last, Box<double> box,
          OverlapLimit<double> limit, int64_t* taken),
         (open, first, last, box, limit, taken))

// Boxes that share a grid.
struct GridLevel {
  double left = std::numeric_limits<double>::max(), top = left;
  double right = std::numeric_limits<double>::lowest(), bottom = right;  // of the centers
  double widest = 0, highest = 0;
  size_t count = 0;
  int64_t first_cell = 0;
  BoxGrid grid{};

  template <typename T>
  void add(Box<T> box) {
    ++count;
    left = std::min(left, center_x(box));
    right = std::max(right, center_x(box));
    top = std::min(top, center_y(box));
    bottom = std::max(bottom, center_y(box));
    widest = std::max(widest, width(box));
    highest = std::max(highest, height(box));
  }
};

template <typename T>
class GreedyGroups {
 public:
  // taken_by[p], for each position p in `order`: the position of the box that takes it, p if it is kept.
  // box_at(i) is the box of index i.
  template <typename BoxAt>
  void run(const std::vector<int64_t>& order, const BoxAt& box_at, OverlapLimit<T> limit,
           std::vector<int64_t>& taken_by) {
    boxes_.clear();
    for (const int64_t index : order) boxes_.push_back(box_at(index));
    limit_ = limit;
    make_levels();
    file_boxes();
    constexpr int64_t kOpen = -1;
    taken_by.assign(boxes_.size(), kOpen);
    taken_.resize(boxes_.size());
    for (size_t position = 0; position < boxes_.size(); ++position) {
      if (taken_by[position] != kOpen) continue;
      taken_by[position] = static_cast<int64_t>(position);
      if (level_of_[position] >= 0) take_rivals(position, taken_by);
    }
  }

 private:
  static constexpr size_t kBoxesPerCell = 64;
  static constexpr int64_t kMaxSide = 256;  // cells along one side

  // IoU needs one grid; IoS one for each size.
  void make_levels() {
    level_of_.assign(boxes_.size(), 0);
    const bool by_size = limit_.metric == Metric::kIos && boxes_.size() > kBoxesPerCell;
    levels_.assign(by_size ? level_by_size() : 1, {});
    for (size_t position = 0; position < boxes_.size(); ++position) {
      const Box<T> box = boxes_[position];
      if (can_overlap(box, area(box)))
        levels_[static_cast<size_t>(level_of_[position])].add(box);
      else
        level_of_[position] = -1;
    }
  }

  // A level for each power of two of the longer side. Where few boxes have it, they share that of the next
  // longer ones: two neighbouring levels have more than kBoxesPerCell together, so that looking at all levels
  // costs little. Returns how many they are.
  size_t level_by_size() {
    constexpr uint64_t kExponents = 2048;  // of a double
    const auto exponent = [](Box<T> box) {
      return bit_cast<uint64_t>(std::max(width(box), height(box))) >> 52 & (kExponents - 1);
    };
    size_t counts[kExponents] = {};
    for (const Box<T>& box : boxes_) ++counts[exponent(box)];
    int32_t levels[kExponents], level = 0;
    size_t in_level = 0;
    for (size_t e = 0; e < kExponents; ++e) {
      if (in_level > 0 && in_level + counts[e] > kBoxesPerCell) {
        ++level;
        in_level = 0;
      }
      in_level += counts[e];
      levels[e] = level;
    }
    for (size_t position = 0; position < boxes_.size(); ++position)
      level_of_[position] = levels[exponent(boxes_[position])];
    return static_cast<size_t>(level) + 1;
  }

  // A cell's room is the number of boxes whose center lies in it.
  void file_boxes() {
    const bool is_pruned = limit_.metric == Metric::kIos || limit_.threshold >= static_cast<T>(kMinPruned);
    int64_t cells = 0;
    for (GridLevel& level : levels_) {
      int64_t side = 1;
      if (is_pruned)
        while (side < kMaxSide && static_cast<size_t>((side + 1) * (side + 1)) * kBoxesPerCell <= level.count)
          ++side;
      level.grid = {grid_axis(level.left, level.right, side), grid_axis(level.top, level.bottom, side)};
      level.first_cell = cells;
      cells += side * side;
    }
    starts_.assign(static_cast<size_t>(cells + 1), 0);
    used_.assign(static_cast<size_t>(cells), 0);
    cells_.clear();
    for (size_t position = 0; position < boxes_.size(); ++position) {
      cells_.push_back(-1);
      if (level_of_[position] < 0) continue;
      const GridLevel& level = levels_[static_cast<size_t>(level_of_[position])];
      cells_.back() = level.first_cell + level.grid.cell(boxes_[position]);
      ++starts_[static_cast<size_t>(cells_.back()) + 1];
    }
    for (size_t c = 1; c < starts_.size(); ++c)
      starts_[c] = starts_[c - 1] + (starts_[c] + kLanes - 1) / kLanes * kLanes;
    slots_.assign(static_cast<size_t>(starts_.back()));
    positions_.resize(static_cast<size_t>(starts_.back()));
    open_ = {slots_.x1.data(),    slots_.y1.data(),  slots_.x2.data(), slots_.y2.data(),
             slots_.areas.data(), positions_.data(), starts_.data(),   used_.data()};
    for (size_t position = 0; position < boxes_.size(); ++position)
      if (cells_[position] >= 0)
        open_.file(cells_[position], boxes_[position], static_cast<int64_t>(position));
  }

  // Takes all open boxes that the one at `position` overlaps beyond the limit: itself too, unless the limit
  // is 1.
  void take_rivals(size_t position, std::vector<int64_t>& taken_by) {
    const Box<T> box = boxes_[position];
    const double reach = nms_reach(static_cast<double>(limit_.threshold));
    for (const GridLevel& level : levels_) {
      const CellRange cells = limit_.metric == Metric::kIos
                                  ? level.grid.touching(box, level.widest, level.highest)
                                  : level.grid.around(box, area(box), reach);
      for (int64_t row = cells.top; row <= cells.bottom; ++row) {
        const int64_t first = level.first_cell + row * level.grid.rows.side;
        const int64_t count =
            take_over(open_, first + cells.left, first + cells.right, box, limit_, taken_.data());
        for (int64_t i = 0; i < count; ++i)
          taken_by[static_cast<size_t>(taken_[static_cast<size_t>(i)])] = static_cast<int64_t>(position);
      }
    }
  }

  OverlapLimit<T> limit_{};
  std::vector<Box<T>> boxes_;
  std::vector<GridLevel> levels_;
  std::vector<int32_t> level_of_;  // of each box, or -1 where it cannot overlap any
  std::vector<int64_t> cells_;     // the same
  std::vector<int64_t> starts_, used_, positions_, taken_;
  BoxColumns<T> slots_;
  OpenBoxes<T> open_{};
};

}  // namespace ssd_ops
