// Every box formula of the library, for host and device. No torch header.
//
// Boxes are xyxy corners. T is float or double; half-precision inputs are converted to float first.
// The order of operations is part of the contract: a change of it changes answers.
#pragma once

#include <cstdint>
#include <limits>

#include "common/host_device.h"
#include "common/math.h"

namespace ssd_ops {

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// What the four numbers of an offset mean; the numbers stand in the schemas for the names in Python. Lengths are
// in sizes of the anchor: widths for x, heights for y.
enum class Coding : int64_t {
  kCenter,    // distance of the centers, and log of the size ratio (SSD, arXiv:1512.02325, eq. 2)
  kLinear,    // distance of the centers, and the size ratio itself (BlazeFace, arXiv:1907.05047)
  kDistance,  // from the anchor's center to the left, top, right and bottom side (FCOS, arXiv:1904.01355)
};

// What encode makes and decode reads; of kDistance, left, top, right and bottom.
template <typename T>
struct Offset {
  T x, y, w, h;
};

// What each number of an offset is divided by.
template <typename T>
struct Variances {
  T x, y, w, h;
};

template <typename T>
struct Encoding {
  Coding coding;
  Variances<T> variances;
  T eps;  // kCenter: added inside the logarithm. 1e-6 in "Dive into Deep Learning", 0 elsewhere
};

template <typename T>
struct Decoding {
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Coding coding;
  Variances<T> variances;
  T max_log_size = kInfinity;  // kCenter: log of the size ratio is cut to it
  bool clips = false;          // to 0..width, 0..height
  T width = 0, height = 0;
};

template <typename T>
SSD_HOST_DEVICE T min_of(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
SSD_HOST_DEVICE T max_of(T a, T b) {
  return a > b ? a : b;
}

// min_of and max_of of two corners, in one instruction of a GPU. A NaN, or zeros of different sign, may give the
// other one there, and `iou` the same: with a NaN corner it is 0, and no difference tells the zeros apart.
template <typename T>
SSD_HOST_DEVICE T lower_corner(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) return fminf(a, b);
#endif
  return min_of(a, b);
}

template <typename T>
SSD_HOST_DEVICE T upper_corner(T a, T b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == sizeof(float)) return fmaxf(a, b);
#endif
  return max_of(a, b);
}

template <typename T>
SSD_HOST_DEVICE Box<T> load_box(const T* p) {
  return {p[0], p[1], p[2], p[3]};
}

template <typename T>
SSD_HOST_DEVICE void store_box(Box<T> b, T* p) {
  p[0] = b.x1;
  p[1] = b.y1;
  p[2] = b.x2;
  p[3] = b.y2;
}

// A box that overlaps nothing: it ends before it begins.
template <typename T>
SSD_HOST_DEVICE Box<T> nowhere() {
  constexpr T kMax = std::numeric_limits<T>::max();
  return {kMax, kMax, -kMax, -kMax};
}

template <typename T>
SSD_HOST_DEVICE T area(Box<T> b) {
  return (b.x2 - b.x1) * (b.y2 - b.y1);
}

// True for corners that are finite and in order; x - x is NaN for an infinite or NaN x.
template <typename T>
SSD_HOST_DEVICE bool is_proper(Box<T> b) {
  const bool finite = (b.x1 - b.x1) + (b.y1 - b.y1) + (b.x2 - b.x2) + (b.y2 - b.y2) == T(0);
  return finite && b.x2 >= b.x1 && b.y2 >= b.y1;
}

// A proper box with sides greater than 0: the only kind an offset can be encoded against.
template <typename T>
SSD_HOST_DEVICE bool has_extent(Box<T> b) {
  return is_proper(b) && b.x2 > b.x1 && b.y2 > b.y1;
}

template <typename T>
SSD_HOST_DEVICE bool overlaps(Box<T> a, Box<T> b) {
  return lower_corner(a.x2, b.x2) - upper_corner(a.x1, b.x1) > 0 &&
         lower_corner(a.y2, b.y2) - upper_corner(a.y1, b.y1) > 0;
}

// Area that two boxes share. Here and below, one selection after the other instead of &&, so that loops over
// many boxes have no branches.
template <typename T>
SSD_HOST_DEVICE T intersection(Box<T> a, Box<T> b) {
  const T zero{};
  const T w = lower_corner(a.x2, b.x2) - upper_corner(a.x1, b.x1);
  const T h = lower_corner(a.y2, b.y2) - upper_corner(a.y1, b.y1);
  const T if_wide = w > zero ? w * h : zero;
  return h > zero ? if_wide : zero;
}

// What the overlap of two boxes is measured by. The numbers stand in the schemas for the names in Python.
enum class Metric : int {
  kIou,  // intersection over union
  kIos,  // intersection over the smaller area
};

// What an intersection is divided by. It is no finite number where an area is none.
template <typename T>
SSD_HOST_DEVICE T base_area(Metric metric, T inter, T area_a, T area_b) {
  const T both = area_a + area_b;
  // both - both is 0, or NaN where `both` is infinite or NaN.
  return metric == Metric::kIos ? min_of(area_a, area_b) + (both - both) : both - inter;
}

// The overlap of two boxes, in 0..1. It is 0, never NaN, where the boxes do not overlap, a corner is
// NaN, or the areas add up to infinity: the quotient is 0 or NaN in the last two, and NaN compares false.
template <typename T>
SSD_HOST_DEVICE T overlap(T inter, T base) {
  const T zero{};
  const T quotient = inter / base;
  const T if_number = quotient >= zero ? quotient : zero;
  return inter > zero ? if_number : zero;
}

template <typename T>
SSD_HOST_DEVICE T overlap(Metric metric, T inter, T area_a, T area_b) {
  return overlap(inter, base_area(metric, inter, area_a, area_b));
}

template <typename T>
SSD_HOST_DEVICE T overlap(Metric metric, Box<T> a, T area_a, Box<T> b, T area_b) {
  return overlap(metric, intersection(a, b), area_a, area_b);
}

template <typename T>
SSD_HOST_DEVICE T iou(T inter, T area_a, T area_b) {
  return overlap(Metric::kIou, inter, area_a, area_b);
}

template <typename T>
SSD_HOST_DEVICE T iou(Box<T> a, T area_a, Box<T> b, T area_b) {
  return iou(intersection(a, b), area_a, area_b);
}

template <typename T>
SSD_HOST_DEVICE T iou(Box<T> a, Box<T> b) {
  return iou(a, area(a), b, area(b));
}

// Whether a box overlaps a region, and at least `share` of its own area lies there. Both have extent, so no
// corner is NaN. False where both areas are infinite: the quotient is NaN. No rounding makes it more than 1.
template <typename T>
SSD_HOST_DEVICE bool lies_in(Box<T> box, T box_area, Box<T> region, T share) {
  const T inter = intersection(box, region);
  return (inter > T(0)) & (inter / box_area >= share);
}

// The offset of a box to an anchor. A loop in which the coding is a constant has no branch, here and below.
template <typename T>
SSD_HOST_DEVICE Offset<T> encode(Box<T> box, Box<T> anchor, const Encoding<T>& rules) {
  const Variances<T> v = rules.variances;
  const T aw = anchor.x2 - anchor.x1, ah = anchor.y2 - anchor.y1;
  const T ax = (anchor.x1 + anchor.x2) / T(2), ay = (anchor.y1 + anchor.y2) / T(2);
  if (rules.coding == Coding::kDistance)
    return {(ax - box.x1) / aw / v.x, (ay - box.y1) / ah / v.y, (box.x2 - ax) / aw / v.w,
            (box.y2 - ay) / ah / v.h};
  const T dx = (box.x1 + box.x2) / T(2) - ax;
  const T dy = (box.y1 + box.y2) / T(2) - ay;
  T w = (box.x2 - box.x1) / aw, h = (box.y2 - box.y1) / ah;
  if (rules.coding == Coding::kCenter) {
    w = log(rules.eps + w);
    h = log(rules.eps + h);
  }
  return {dx / aw / v.x, dy / ah / v.y, w / v.w, h / v.h};
}

// The part of a coordinate that lies between two others; NaN stays NaN.
template <typename T>
SSD_HOST_DEVICE T clip_to(T x, T low, T high) {
  return x < low ? low : (x > high ? high : x);
}

template <typename T>
SSD_HOST_DEVICE Box<T> clip_box(Box<T> b, T width, T height) {
  return {clip_to(b.x1, T(0), width), clip_to(b.y1, T(0), height), clip_to(b.x2, T(0), width),
          clip_to(b.y2, T(0), height)};
}

// The box that an offset stands for: the inverse of encode with eps 0. An offset too large for exp gives an
// infinite box, not an error.
template <typename T>
SSD_HOST_DEVICE Box<T> decode(Offset<T> offset, Box<T> anchor, const Decoding<T>& rules) {
  const Variances<T> v = rules.variances;
  const T aw = anchor.x2 - anchor.x1, ah = anchor.y2 - anchor.y1;
  const T ax = (anchor.x1 + anchor.x2) / T(2), ay = (anchor.y1 + anchor.y2) / T(2);
  const T dx = offset.x * v.x * aw, dy = offset.y * v.y * ah;
  T w = offset.w * v.w, h = offset.h * v.h;
  if (rules.coding == Coding::kCenter) {
    const T most = rules.max_log_size;
    w = exp(w > most ? most : w);
    h = exp(h > most ? most : h);
  }
  Box<T> box;
  if (rules.coding == Coding::kDistance) {
    box = {ax - dx, ay - dy, ax + w * aw, ay + h * ah};
  } else {
    const T cx = dx + ax, cy = dy + ay, half_w = w * aw / T(2), half_h = h * ah / T(2);
    box = {cx - half_w, cy - half_h, cx + half_w, cy + half_h};
  }
  return rules.clips ? clip_box(box, rules.width, rules.height) : box;
}

}  // namespace ssd_ops
