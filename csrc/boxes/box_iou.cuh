// box_iou on the GPU. Each thread keeps one of boxes2 in registers and writes a column of a tile, so that
// neighbouring threads write neighbouring numbers: the output is what the time goes to.
#pragma once

#include "common/device.cuh"

namespace ssd_ops {

constexpr int kIouColumns = 256;  // threads of a block
constexpr int kIouRows = 8;

template <typename T>
__global__ void __launch_bounds__(kIouColumns)
    box_iou_kernel(Input boxes1,  // [groups, n, 4]
                   Input boxes2,  // [groups, m, 4]
                   int64_t n, int64_t m, int64_t row_tiles, int64_t column_tiles, Metric metric,
                   T* ious) {  // [groups, n, m]
  const int64_t column_tile = blockIdx.x % column_tiles, rest = blockIdx.x / column_tiles;
  const int64_t first_row = rest % row_tiles * kIouRows, group = rest / row_tiles;
  const int64_t column = column_tile * kIouColumns + threadIdx.x;
  if (column >= m) return;
  const Box<T> b = load_row<T>(boxes2, group * m + column);
  const T area_b = area(b);
  const int64_t end = min_of(first_row + kIouRows, n);
  for (int64_t row = first_row; row < end; ++row) {
    const Box<T> a = load_row<T>(boxes1, group * n + row);
    ious[(group * n + row) * m + column] = overlap(metric, a, area(a), b, area_b);
  }
}

}  // namespace ssd_ops
