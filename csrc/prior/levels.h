// The anchors of one cell of each level, worked out once per call: shared by the CPU and the CUDA kernel.
#pragma once

#include "prior/multibox_priors.h"
#include "prior/prior_box.h"

namespace ssd_ops {

template <typename T>
struct Level {
  int64_t height, width, first;  // `first`: the index of its first anchor
  std::vector<T> half;           // (half width, half height) of each anchor of a cell
  T step_y, step_x;

  int64_t per_cell() const { return static_cast<int64_t>(half.size() / 2); }
  int64_t end() const { return first + height * width * per_cell(); }
};

template <typename T>
std::vector<Level<T>> levels_of(const std::vector<Tensor>& feature_maps,  // each [..., H, W]
                                const PriorLevels& p) {
  std::vector<Level<T>> levels;
  const double *sizes = p.sizes.data(), *ratios = p.ratios.data();
  int64_t first = 0;
  for (size_t l = 0; l < feature_maps.size(); ++l) {
    const Tensor& map = feature_maps[l];
    Level<T> level;
    level.height = map.size(map.dim() - 2);
    level.width = map.size(map.dim() - 1);
    level.first = first;
    const double h = static_cast<double>(level.height), w = static_cast<double>(level.width);
    level.step_y = static_cast<T>(p.steps.empty() ? 1 / h : p.steps[2 * l]);
    level.step_x = static_cast<T>(p.steps.empty() ? 1 / w : p.steps[2 * l + 1]);
    const auto add = [&](T width, T height) {
      level.half.push_back(width * static_cast<T>(h) / static_cast<T>(w) / T(2));
      level.half.push_back(height / T(2));
    };
    const T first_root = std::sqrt(static_cast<T>(ratios[0]));
    for (int64_t i = 0; i < p.size_counts[l]; ++i)
      add(static_cast<T>(sizes[i]) * first_root, static_cast<T>(sizes[i]) / first_root);
    // The book divides the number sizes[0] by a tensor, for which torch multiplies by the reciprocal.
    for (int64_t i = 1; i < p.ratio_counts[l]; ++i) {
      const T root = std::sqrt(static_cast<T>(ratios[i]));
      add(static_cast<T>(sizes[0]) * root, static_cast<T>(sizes[0]) * (T(1) / root));
    }
    sizes += p.size_counts[l];
    ratios += p.ratio_counts[l];
    first = level.end();
    levels.push_back(std::move(level));
  }
  return levels;
}

}  // namespace ssd_ops
