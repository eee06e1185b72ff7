// Boxes by coordinate, as vector loops over many of them read them.
#pragma once

#include <vector>

#include "common/box.h"

namespace ssd_ops {

template <typename T>
struct BoxColumns {
  std::vector<T> x1, y1, x2, y2, areas;

  // Room for `count` boxes, each of them nowhere until it is set.
  void assign(size_t count) {
    const Box<T> box = nowhere<T>();
    x1.assign(count, box.x1);
    y1.assign(count, box.y1);
    x2.assign(count, box.x2);
    y2.assign(count, box.y2);
    areas.assign(count, T(0));
  }

  void set(size_t i, Box<T> box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    areas[i] = area(box);
  }

  Box<T> at(size_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

}  // namespace ssd_ops
