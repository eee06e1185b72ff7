// Which boxes can suppress each other, for host and device: what lets NMS skip nearly all pairs.
//
// For IoU > t both w_overlap > t * max(w1, w2) and w_overlap <= (w1 + w2) / 2 - |cx1 - cx2| hold, so
// |cx1 - cx2| < (1 - t) * max(w1, w2) and max(w1, w2) < w1 / t; the same for heights. So a box that is filed
// by its center in a grid meets only boxes within (1 / t - 1) of its own size. The bound is widened far
// beyond rounding, and the exact test decides.
//
// IoS bounds no ratio of sizes: it is 1 for a tiny box anywhere in a huge one. What is left is that the boxes
// overlap at all, w_overlap > 0, so |cx1 - cx2| < (w1 + w2) / 2. Among boxes of which none is wider than w,
// a box meets only those within (w1 + w) / 2; so boxes are filed by size, each size in a grid of its own.
#pragma once

#include <cmath>
#include <limits>

#include "common/box.h"

namespace ssd_ops {

// How far boxes may overlap: beyond, one suppresses the other.
template <typename T>
struct OverlapLimit {
  T threshold;
  Metric metric;
};

// The greatest T not above the threshold: for an overlap in T, overlap > threshold exactly if overlap > this.
template <typename T>
T round_down(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, T(-1)) : nearest;
}

// The limit that the arguments of an op ask for.
template <typename T>
OverlapLimit<T> overlap_limit(double threshold, int64_t metric) {
  return {round_down<T>(threshold), static_cast<Metric>(metric)};
}

// A quicker test that leaves close calls open, for one box against many. With the areas A and B and
// c = t / (1 + t), IoU > t exactly if the margin, inter - c A - c B, is above 0. What is computed of it and the
// IoU are off by less than 8 u (A + B) in all, with u half of epsilon, so a margin beyond that decides. B alone
// bounds the sum by B (1 + 2 / t): where A is over 2 B / t, the margin is below -t A / 4, far beyond its error.
template <typename T>
struct MarginTest {
  T share, slack;  // c, and the slack for each unit of the area B

  explicit MarginTest(T threshold)
      : share(threshold / (T(1) + threshold)),
        slack(T(4) * std::numeric_limits<T>::epsilon() * (T(1) + T(2) / threshold)) {}

  // Whether it can be asked. Areas beyond these could overflow in a sum, or round to too few digits.
  SSD_HOST_DEVICE static bool knows(OverlapLimit<T> limit, T area_b) {
    return limit.metric == Metric::kIou && limit.threshold >= T(1e-3) && limit.threshold <= T(1) &&
           area_b >= T(1e-30) && area_b <= T(1e30);
  }
  // The margin without c B. NaN where a is nowhere.
  SSD_HOST_DEVICE static T part(Box<T> a, T share_of_a, Box<T> b) {
    const T w = lower_corner(a.x2, b.x2) - upper_corner(a.x1, b.x1);
    const T h = lower_corner(a.y2, b.y2) - upper_corner(a.y1, b.y1);
    return upper_corner(w, T(0)) * h - share_of_a;
  }
};

// A box whose area is 0, infinite or NaN has overlap 0 with every other: it is kept and suppresses nothing.
template <typename T>
SSD_HOST_DEVICE bool can_overlap(Box<T> box, T box_area) {
  return box_area > T(0) && box_area <= std::numeric_limits<T>::max() && box.x2 > box.x1 && box.y2 > box.y1;
}

constexpr double kMinPruned = 0.01;  // below this threshold every cell may matter

// An area below the normal numbers is so coarse that an IoU over the threshold bounds no distance.
template <typename T>
SSD_HOST_DEVICE bool can_be_pruned(T box_area) {
  return box_area >= std::numeric_limits<T>::min();
}

// How far, in its own sizes, a box has to look for an IoU over the threshold.
SSD_HOST_DEVICE double nms_reach(double threshold) {
  constexpr double kWiden = 1.001;
  return (1 / threshold - 1) * kWiden + 1e-6;
}

template <typename T>
SSD_HOST_DEVICE double center_x(Box<T> b) {
  return 0.5 * (static_cast<double>(b.x1) + static_cast<double>(b.x2));
}
template <typename T>
SSD_HOST_DEVICE double center_y(Box<T> b) {
  return 0.5 * (static_cast<double>(b.y1) + static_cast<double>(b.y2));
}

template <typename T>
SSD_HOST_DEVICE double width(Box<T> b) {
  return static_cast<double>(b.x2) - static_cast<double>(b.x1);
}
template <typename T>
SSD_HOST_DEVICE double height(Box<T> b) {
  return static_cast<double>(b.y2) - static_cast<double>(b.y1);
}

// One axis of the grid: `side` cells over the centers from `low` to `high`.
struct GridAxis {
  double low, per_unit;
  int64_t side;

  // Clamped before the conversion, which is undefined outside the integer's range.
  SSD_HOST_DEVICE int64_t cell(double at) const {
    const double in_cells = (at - low) * per_unit, last = static_cast<double>(side - 1);
    return static_cast<int64_t>(min_of(max_of(in_cells, 0.0), last));
  }
};

SSD_HOST_DEVICE GridAxis grid_axis(double low, double high, int64_t side) {
  return {low, high > low ? static_cast<double>(side) / (high - low) : 0, side};
}

struct CellRange {
  int64_t left, right, top, bottom;
};

// A grid over the centers of boxes, with cells by row and column.
struct BoxGrid {
  GridAxis columns, rows;

  template <typename T>
  SSD_HOST_DEVICE int64_t cell(Box<T> box) const {
    return rows.cell(center_y(box)) * rows.side + columns.cell(center_x(box));
  }

  // The cells in which the boxes lie that can have an IoU over the threshold with this one.
  template <typename T>
  SSD_HOST_DEVICE CellRange around(Box<T> box, T box_area, double reach) const {
    if (!can_be_pruned(box_area)) return {0, columns.side - 1, 0, rows.side - 1};
    return within(box, reach * width(box), reach * height(box));
  }

  // The cells in which the boxes lie that can touch this one, where none is larger than widest x highest.
  template <typename T>
  SSD_HOST_DEVICE CellRange touching(Box<T> box, double widest, double highest) const {
    constexpr double kWiden = 0.5 * 1.001, kRounding = 1e-15;  // of centers: less than 4 times 2^-53 of them
    const double x = center_x(box), y = center_y(box);
    return within(box, kWiden * (width(box) + widest) + kRounding * (x < 0 ? -x : x),
                  kWiden * (height(box) + highest) + kRounding * (y < 0 ? -y : y));
  }

 private:
  template <typename T>
  SSD_HOST_DEVICE CellRange within(Box<T> box, double rx, double ry) const {
    const double x = center_x(box), y = center_y(box);
    return {columns.cell(x - rx), columns.cell(x + rx), rows.cell(y - ry), rows.cell(y + ry)};
  }
};

// fl(inter / base) > t needs inter >= fl(lower * base) for any lower < t * (1 - 2^-23), whatever the base:
// rounding is monotone, and inter is representable. That spares nearly all divisions; the exact test decides.
template <typename T>
SSD_HOST_DEVICE T quick_threshold(T threshold) {
  return threshold * static_cast<T>(1 - 1e-6);
}

// inter > fl(upper * union) makes fl(inter / union) > t certain for any upper > t: rounding is monotone, inter
// and upper are representable, so inter / union > upper and its rounding is not below upper. Infinity where no
// factor makes a number of its own.
template <typename T>
SSD_HOST_DEVICE T sure_threshold(T threshold) {
  const T upper = threshold * static_cast<T>(1 + 1e-6);
  return upper > threshold ? upper : std::numeric_limits<T>::infinity();
}

}  // namespace ssd_ops
