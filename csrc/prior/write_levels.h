// The anchors of all levels, by the CPU: the kernel of multibox_priors and of grid_anchors.
#pragma once

#include "prior/levels.h"
#include "prior/prior_box.h"

namespace ssd_ops {

constexpr int64_t kGrain = 16384;  // anchors per task: a hand-over costs as much as writing about that many

template <typename T>
void write_rows(const Level<T>& level, const std::vector<double>& offsets, bool clip, int64_t row_begin,
                int64_t row_end,
                T* anchors) {  // [A, 4], of all levels
  const int64_t per_cell = level.per_cell();
  T* out = anchors + 4 * (level.first + row_begin * level.width * per_cell);
  for (int64_t y = row_begin; y < row_end; ++y) {
    const T cy = prior_center(y, static_cast<T>(offsets[0]), level.step_y);
    for (int64_t x = 0; x < level.width; ++x) {
      const T cx = prior_center(x, static_cast<T>(offsets[1]), level.step_x);
      for (int64_t k = 0; k < per_cell; ++k, out += 4)
        store_box(prior_box(cy, cx, level.half[2 * k], level.half[2 * k + 1], clip), out);
    }
  }
}

// -> [1, A, 4] on the device of `like`
template <typename T>
Tensor write_levels(const std::vector<Level<T>>& levels, const Tensor& like,
                    const std::vector<double>& offsets, bool clip) {
  Tensor out = new_real<T>(like, {1, levels.back().end(), 4});
  T* anchors = data<T>(out);
  for (const Level<T>& level : levels) {
    const int64_t grain = kGrain / std::max<int64_t>(level.width * level.per_cell(), 1) + 1;
    torch::stable::parallel_for(0, level.height, grain, [&](int64_t begin, int64_t end) {
      write_rows(level, offsets, clip, begin, end, anchors);
    });
  }
  return out;
}

}  // namespace ssd_ops
