// multibox_priors: the anchors of every level of a detector, one box per cell, size and ratio.
//
//   feature_maps  L tensors [..., H_l, W_l]; only their shapes, device and dtype are used
//   sizes, ratios  the levels' lists, one after another, with their lengths in *_counts
//   steps          per level (y, x), in fractions of the image; empty: 1/H, 1/W
//   offsets        (y, x), where in a cell its center lies, in cells
//   -> [1, A, 4] xyxy in fractions of the image, float32 (float64 where a feature map is float64)
//
// Levels in their order, cells row by row, and in a cell: every size with the first ratio, then the
// first size with every other ratio. Width s * sqrt(r) * H / W, height s / sqrt(r): r is the aspect
// ratio in pixels of a square image (MXNet MultiBoxPrior; "Dive into Deep Learning", 14.4).
#pragma once

#include "prior/levels.h"

namespace ssd_ops {

struct PriorLevels {
  std::vector<double> sizes;
  std::vector<int64_t> size_counts;
  std::vector<double> ratios;
  std::vector<int64_t> ratio_counts;
  std::vector<double> steps;
  std::vector<double> offsets;
};

inline void check_multibox_priors(const std::vector<Tensor>& feature_maps,  // each [..., H, W]
                                  const PriorLevels& p) {
  constexpr const char* op = "multibox_priors";
  check_levels(op, feature_maps, p.steps, p.offsets);
  check_lists(op, "sizes", feature_maps.size(), p.sizes, p.size_counts, 1, "number");
  check_lists(op, "ratios", feature_maps.size(), p.ratios, p.ratio_counts, 1, "number");
}

template <typename T>
std::vector<Level<T>> levels_of(const std::vector<Tensor>& feature_maps,  // each [..., H, W]
                                const PriorLevels& p) {
  const double *sizes = p.sizes.data(), *ratios = p.ratios.data();
  return levels_of<T>(feature_maps, p.steps, [&](size_t l, Level<T>& level) {
    const auto add = [&](T width, T height) {
      level.half.push_back(width * static_cast<T>(level.height) / static_cast<T>(level.width) / T(2));
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
  });
}

}  // namespace ssd_ops
