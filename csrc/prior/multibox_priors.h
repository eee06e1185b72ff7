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

#include "common/tensor.h"

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
  const size_t levels = feature_maps.size();
  if (levels == 0) fail(op, "feature_maps must be at least one tensor, got none");
  for (const Tensor& map : feature_maps) {
    check_shape(map.dim() >= 2, op, "feature_maps", "[..., H, W]", map);
    check_floating(op, "feature_maps", map);
    check_same_device(op, "feature_maps", map, "the first feature map", feature_maps[0]);
  }
  const auto check_lists = [&](const char* name, const std::vector<double>& values,
                               const std::vector<int64_t>& counts) {
    if (counts.size() != levels) fail(op, name, " must be ", levels, " lists, got ", counts.size());
    size_t total = 0;
    for (const int64_t count : counts) {
      if (count < 1) fail(op, name, " must be at least one number for each level, got none");
      if (static_cast<uint64_t>(count) > values.size()) fail(op, name, " must fill its counts");
      total += static_cast<size_t>(count);
    }
    if (total != values.size()) fail(op, name, " must be ", total, " numbers, got ", values.size());
    for (const double value : values) check_positive(op, name, value);
  };
  check_lists("sizes", p.sizes, p.size_counts);
  check_lists("ratios", p.ratios, p.ratio_counts);
  if (!p.steps.empty() && p.steps.size() != 2 * levels)
    fail(op, "steps must be a (y, x) pair for each of ", levels, " levels, got ", p.steps.size(), " numbers");
  for (const double step : p.steps) check_positive(op, "steps", step);
  if (p.offsets.size() != 2) fail(op, "offsets must be (y, x), got ", p.offsets.size(), " numbers");
  for (const double offset : p.offsets) check_fraction(op, "offsets", offset);
}

}  // namespace ssd_ops
