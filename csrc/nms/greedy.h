// Exact greedy NMS on the CPU: of boxes in score order, keeps each that no kept one overlaps too much.
//
// A box is tested only against kept boxes, newest first (boxes of like score lie close together), and
// only against those that could overlap it enough: kept boxes are filed by center in a grid (nms/prune.h).
// Where there are many boxes, threads take strips of the grid. Memory is linear in the boxes. By IoS, boxes of
// all sizes suppress each other, and the other way round is quicker (nms/greedy_groups.h).
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/box_columns.h"
#include "common/share_out.h"
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

// Boxes by cell of a grid. A cell's room is the number of boxes whose center lies in it, so that filing never
// moves anything.
template <typename T>
class FiledBoxes {
 public:
  // Room for the boxes of each cell, of which there are counts[c].
  void make_room(const std::vector<int64_t>& counts) {
    starts_.clear();
    int64_t start = 0;
    for (const int64_t count : counts) {
      starts_.push_back(start);
      start += (count + kLanes - 1) / kLanes * kLanes;
    }
    used_.assign(counts.size(), 0);
    slots_.assign(static_cast<size_t>(start));
  }

  void file(Box<T> box, int64_t cell) {
    slots_.set(static_cast<size_t>(starts_[static_cast<size_t>(cell)] + used_[static_cast<size_t>(cell)]++),
               box);
  }

  KeptBoxes<T> boxes() const {
    return {slots_.x1.data(),    slots_.y1.data(), slots_.x2.data(), slots_.y2.data(),
            slots_.areas.data(), starts_.data(),   used_.data()};
  }

 private:
  std::vector<int64_t> starts_, used_;
  BoxColumns<T> slots_;
};

template <typename T>
class GreedyNms {
 public:
  // With threads of its own where there are many boxes: not where other threads have work already.
  explicit GreedyNms(bool uses_threads = false) : uses_threads_(uses_threads) {}

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
    load(order, box_at);
    lay_out_grid(threshold);
    const int64_t strips = count_strips();
    if (strips > 1) {
      run_strips(strips, threshold, kept);
      return;
    }
    for (size_t position = 0; position < boxes_.size(); ++position) {
      const Box<T> box = boxes_[position];
      const int64_t cell = cells_[position];
      if (cell >= 0) {
        if (is_over(box, cell, threshold)) continue;
        kept_.file(box, cell);
      }
      kept.push_back(static_cast<int64_t>(position));
    }
  }

 private:
  static constexpr size_t kFew = 512;            // boxes: for more, a grid pays
  static constexpr size_t kThreadsFrom = 80000;  // boxes: for fewer, threads cost more than they save
  static constexpr size_t kBoxesPerCell = 128;
  static constexpr int64_t kMaxSide = 256;  // cells along one side
  // Cells along a box of mean size, at most: more would only make each box look into more of them. Where all
  // boxes lie in one pile, one cell is left.
  static constexpr double kCellsPerSize = 2;

  // Of the grid, with its first and last row: its cells lie together, so threads write to no common line.
  struct Strip {
    int64_t first, last;
  };
  // The positions of its boxes that are not dropped, ascending.
  struct Decided {
    std::vector<int64_t> kept, open;
  };
  enum class State : uint8_t { kKept, kDropped, kOpen };

  // body(begin, end) for all boxes, part by part.
  template <typename Body>
  void in_parts(const Body& body) const {
    constexpr int64_t kPart = 8192;
    const int64_t count = static_cast<int64_t>(boxes_.size());
    if (uses_threads_ && boxes_.size() >= kThreadsFrom)
      torch::stable::parallel_for(0, count, kPart, body);
    else
      body(0, count);
  }

  template <typename BoxAt>
  void load(const std::vector<int64_t>& order, const BoxAt& box_at) {
    boxes_.resize(order.size());
    in_parts([&](int64_t begin, int64_t end) {
      for (size_t i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
        boxes_[i] = box_at(order[i]);
    });
  }

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
    mean_height_ = heights / static_cast<double>(active);
    grid_ = {grid_axis(left, right, side_), grid_axis(top, bottom, side_)};
    reach_ = threshold >= T(kMinPruned) ? nms_reach(threshold) : 0;

    cells_.resize(boxes_.size());
    in_parts([&](int64_t begin, int64_t end) {
      for (size_t i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
        cells_[i] = can_overlap(boxes_[i], area(boxes_[i])) ? grid_.cell(boxes_[i]) : -1;
    });
    cell_counts_.assign(static_cast<size_t>(side_ * side_), 0);
    for (const int64_t cell : cells_)
      if (cell >= 0) ++cell_counts_[static_cast<size_t>(cell)];
    kept_.make_room(cell_counts_);
  }

  bool is_over(Box<T> box, int64_t cell, T threshold) const {
    // What suppresses a box most often has its center close by.
    if (any_over(kept_.boxes(), cell, cell, box, threshold)) return true;
    return side_ > 1 && is_over(kept_, grid_.around(box, area(box), reach_), box, threshold);
  }

  bool is_over(const FiledBoxes<T>& filed, CellRange cells, Box<T> box, T threshold) const {
    const KeptBoxes<T> kept = filed.boxes();
    for (int64_t row = cells.top; row <= cells.bottom; ++row)
      if (any_over(kept, row * side_ + cells.left, row * side_ + cells.right, box, threshold)) return true;
    return false;
  }

  // In how many strips the grid is cut: 1 where threads would not pay. A strip is much wider than what a box
  // can reach, so that few boxes look beyond one.
  int64_t count_strips() const {
    constexpr double kReaches = 8;
    if (!uses_threads_ || boxes_.size() < kThreadsFrom || reach_ == 0) return 1;
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    if (threads == 1) return 1;
    const double rows = reach_ * mean_height_ * grid_.rows.per_unit;
    const double most = static_cast<double>(side_) / (kReaches * rows + 1);
    return most < 2 ? 1 : min_of(threads, static_cast<int64_t>(most));
  }

  // Each strip by itself, from the best box on, and exactly what one loop over all boxes gives. A box that a
  // kept one of its strip overlaps too much is dropped. Of the others, one that can reach another strip stays
  // open, and so does one that an open box before it overlaps too much. The rest is kept, and overlaps no open
  // box before it. So the open boxes, which are decided at last, change nothing of that.
  void run_strips(int64_t strips, T threshold, std::vector<int64_t>& kept) {
    open_.make_room(cell_counts_);
    std::vector<Decided> decided(static_cast<size_t>(strips));
    share_out(strips, [&](const auto& next) {
      for (int64_t i; next(i);)
        decided[static_cast<size_t>(i)] =
            run_strip({i * side_ / strips, (i + 1) * side_ / strips - 1}, threshold);
    });
    states_.assign(boxes_.size(), State::kDropped);
    for (const Decided& of_strip : decided) {
      for (const int64_t position : of_strip.kept) states_[static_cast<size_t>(position)] = State::kKept;
      for (const int64_t position : of_strip.open) states_[static_cast<size_t>(position)] = State::kOpen;
    }
    for (size_t position = 0; position < boxes_.size(); ++position) {
      const Box<T> box = boxes_[position];
      const int64_t cell = cells_[position];
      if (cell >= 0 && states_[position] == State::kDropped) continue;
      if (cell >= 0 && states_[position] == State::kOpen) {
        if (is_over(box, cell, threshold)) continue;
        kept_.file(box, cell);
      }
      kept.push_back(static_cast<int64_t>(position));
    }
  }

  // It writes to memory of its own: threads that write side by side would wait for each other.
  Decided run_strip(Strip strip, T threshold) {
    Decided decided;
    std::vector<uint8_t> has_open(static_cast<size_t>(side_));  // of each row
    for (size_t position = 0; position < boxes_.size(); ++position) {
      const int64_t cell = cells_[position];
      if (cell < strip.first * side_ || cell >= (strip.last + 1) * side_) continue;
      const Box<T> box = boxes_[position];
      if (any_over(kept_.boxes(), cell, cell, box, threshold)) continue;
      const CellRange cells = grid_.around(box, area(box), reach_);
      const CellRange inside{cells.left, cells.right, max_of(cells.top, strip.first),
                             min_of(cells.bottom, strip.last)};
      if (is_over(kept_, inside, box, threshold)) continue;
      bool is_open = inside.top != cells.top || inside.bottom != cells.bottom;
      if (!is_open && std::count(&has_open[inside.top], &has_open[inside.bottom] + 1, 1) > 0)
        is_open = is_over(open_, inside, box, threshold);
      if (is_open) has_open[static_cast<size_t>(cell / side_)] = 1;
      (is_open ? decided.open : decided.kept).push_back(static_cast<int64_t>(position));
      (is_open ? open_ : kept_).file(box, cell);
    }
    return decided;
  }

  bool uses_threads_;
  std::vector<Box<T>> boxes_;
  int64_t side_ = 1;
  BoxGrid grid_{};
  double reach_ = 0, mean_height_ = 0;
  std::vector<int64_t> cells_;  // of each box, or -1 where it cannot overlap any
  std::vector<int64_t> cell_counts_;
  FiledBoxes<T> kept_, open_;  // open_ with strips only
  std::vector<State> states_;  // of each box, with strips
  FewNms<T> few_;
  GreedyGroups<T> groups_;
  std::vector<int64_t> taken_by_;  // what groups_ says
};

}  // namespace ssd_ops
