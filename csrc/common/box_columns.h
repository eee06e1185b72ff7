// Boxes by coordinate, as vector loops over many of them read them.
#pragma once

#include <vector>

#include "common/box.h"
#include "common/simd.h"

namespace ssd_ops {

template <typename T>
SSD_HOST_DEVICE void to_columns_lanes(const T* __restrict rows,  // [count, 4]
                                      int64_t count,
                                      T* __restrict x1,  // [count], and so the others
                                      T* __restrict y1, T* __restrict x2, T* __restrict y2,
                                      T* __restrict areas) {
  for (int64_t i = 0; i < count; ++i) {
    const Box<T> box = load_box(rows + 4 * i);
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    areas[i] = area(box);
  }
}

SSD_SIMD(void, to_columns,
         (const float* rows, int64_t count, float* x1, float* y1, float* x2, float* y2, float* areas),
         (rows, count, x1, y1, x2, y2, areas))
SSD_SIMD(void, to_columns,
         (const double* rows, int64_t count, double* x1, double* y1, double* x2, double* y2, double* areas),
         (rows, count, x1, y1, x2, y2, areas))

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

  // These boxes, and in the lanes that are left boxes that are nowhere.
  void load(const T* rows,  // [count, 4]
            size_t count) {
    const size_t room = (count + kLanes - 1) / kLanes * kLanes;
    for (std::vector<T>* column : {&x1, &y1, &x2, &y2, &areas}) column->resize(room);
    to_columns(rows, static_cast<int64_t>(count), x1.data(), y1.data(), x2.data(), y2.data(), areas.data());
    for (size_t i = count; i < room; ++i) set(i, nowhere<T>());
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
