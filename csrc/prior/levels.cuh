// The kernel of multibox_priors and of grid_anchors: one thread an anchor, all levels in one launch.
#pragma once

#include "common/device.cuh"
#include "prior/prior_box.h"

namespace ssd_ops {

constexpr int kLevelThreads = 256;
// What fits in the 4 KB of a kernel's parameters. A longer list of levels or of boxes takes more launches.
constexpr int kLevelParts = 16;
constexpr int kLevelHalves = 128;

// Some of the boxes of each cell of a level.
template <typename T>
struct LevelPart {
  int64_t first_thread, first_anchor;
  int64_t width;                   // cells in a row
  int32_t count, begin, per_cell;  // boxes begin .. begin + count - 1 of the per_cell of each cell
  int32_t first_half;              // where their halves are
  T step_y, step_x;
};

template <typename T>
struct LevelTable {
  int32_t parts, halves;
  int64_t threads;
  T offset_y, offset_x;
  bool clip;
  LevelPart<T> part[kLevelParts];
  T half[2 * kLevelHalves];
};

template <typename T>
__global__ void __launch_bounds__(kLevelThreads) levels_kernel(LevelTable<T> table,
                                                               T* anchors) {  // [A, 4]
  const int64_t thread = global_index();
  if (thread >= table.threads) return;
  int at = 0;
  while (at + 1 < table.parts && thread >= table.part[at + 1].first_thread) ++at;
  const LevelPart<T>& part = table.part[at];
  const int64_t i = thread - part.first_thread, cell = i / part.count, k = i % part.count;
  const T cy = prior_center(cell / part.width, table.offset_y, part.step_y);
  const T cx = prior_center(cell % part.width, table.offset_x, part.step_x);
  const T* half = table.half + 2 * (part.first_half + k);
  store_row(anchors, part.first_anchor + cell * part.per_cell + part.begin + k,
            prior_box(cy, cx, half[0], half[1], table.clip));
}

}  // namespace ssd_ops
