// The launch of the kernel that multibox_priors and grid_anchors share.
#pragma once

#include "common/launch.cu.h"
#include "prior/levels.cuh"
#include "prior/levels.h"

namespace ssd_ops {

// -> [1, A, 4] on the device of `like`
template <typename T>
Tensor launch_levels(const Launcher& launcher, const std::vector<Level<T>>& levels, const Tensor& like,
                     const std::vector<double>& offsets, bool clip) {
  Tensor out = new_real<T>(like, {1, levels.back().end(), 4});
  LevelTable<T> table = {};
  table.offset_y = static_cast<T>(offsets[0]);
  table.offset_x = static_cast<T>(offsets[1]);
  table.clip = clip;
  const auto launch = [&] {
    if (table.threads > 0)
      launcher.run(&levels_kernel<T>, ceil_div(table.threads, kLevelThreads), kLevelThreads, table,
                   data<T>(out));
    table.parts = table.halves = 0;
    table.threads = 0;
  };
  for (const Level<T>& level : levels) {
    if (level.height * level.width == 0) continue;
    for (int64_t begin = 0; begin < level.per_cell();) {
      if (table.parts == kLevelParts || table.halves == kLevelHalves) launch();
      const int64_t count = std::min<int64_t>(kLevelHalves - table.halves, level.per_cell() - begin);
      table.part[table.parts++] = {table.threads,
                                   level.first,
                                   level.width,
                                   static_cast<int32_t>(count),
                                   static_cast<int32_t>(begin),
                                   static_cast<int32_t>(level.per_cell()),
                                   table.halves,
                                   level.step_y,
                                   level.step_x};
      std::copy_n(&level.half[2 * begin], 2 * count, &table.half[2 * table.halves]);
      table.halves += static_cast<int32_t>(count);
      table.threads += level.height * level.width * count;
      begin += count;
    }
  }
  launch();
  return out;
}

}  // namespace ssd_ops
