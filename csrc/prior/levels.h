// The levels of a detector, and the anchors in one cell of each: what multibox_priors and grid_anchors share.
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

// What both ops ask of the arguments that say where the cells are.
inline void check_levels(const char* op, const std::vector<Tensor>& feature_maps,  // each [..., H, W]
                         const std::vector<double>& steps, const std::vector<double>& offsets) {
  const size_t levels = feature_maps.size();
  if (levels == 0) fail(op, "feature_maps must be at least one tensor, got none");
  for (const Tensor& map : feature_maps) {
    check_shape(map.dim() >= 2, op, "feature_maps", "[..., H, W]", map);
    check_floating(op, "feature_maps", map);
    check_same_device(op, "feature_maps", map, "the first feature map", feature_maps[0]);
  }
  if (!steps.empty() && steps.size() != 2 * levels)
    fail(op, "steps must be a (y, x) pair for each of ", levels, " levels, got ", steps.size(), " numbers");
  for (const double step : steps) check_positive(op, "steps", step);
  if (offsets.size() != 2) fail(op, "offsets must be (y, x), got ", offsets.size(), " numbers");
  for (const double offset : offsets) check_fraction(op, "offsets", offset);
}

// The levels' lists of numbers, one after another in `values`; their lengths are in `counts`. A list counts
// entries of `width` numbers, which the messages call `entry`.
inline void check_lists(const char* op, const char* name, size_t levels, const std::vector<double>& values,
                        const std::vector<int64_t>& counts, size_t width, const char* entry) {
  if (counts.size() != levels) fail(op, name, " must be ", levels, " lists, got ", counts.size());
  const size_t entries = values.size() / width;
  size_t total = 0;
  for (const int64_t count : counts) {
    if (count < 1) fail(op, name, " must be at least one ", entry, " for each level, got none");
    if (static_cast<uint64_t>(count) > entries) fail(op, name, " must fill its counts");
    total += static_cast<size_t>(count);
  }
  if (total * width != values.size())
    fail(op, name, " must be ", total * width, " numbers, got ", values.size());
  for (const double value : values) check_positive(op, name, value);
}

template <typename T>
struct Level {
  int64_t height, width, first;  // `first`: the index of its first anchor
  std::vector<T> half;           // (half width, half height) of each anchor of a cell
  T step_y, step_x;

  int64_t per_cell() const { return static_cast<int64_t>(half.size() / 2); }
  int64_t end() const { return first + height * width * per_cell(); }
};

// `add_halves(index, level)` gives a level its anchors.
template <typename T, typename AddHalves>
std::vector<Level<T>> levels_of(const std::vector<Tensor>& feature_maps,  // each [..., H, W]
                                const std::vector<double>& steps,         // per level (y, x); empty: 1/H, 1/W
                                const AddHalves& add_halves) {
  std::vector<Level<T>> levels;
  int64_t first = 0;
  for (size_t l = 0; l < feature_maps.size(); ++l) {
    const Tensor& map = feature_maps[l];
    Level<T> level;
    level.height = map.size(map.dim() - 2);
    level.width = map.size(map.dim() - 1);
    level.first = first;
    level.step_y = static_cast<T>(steps.empty() ? 1 / static_cast<double>(level.height) : steps[2 * l]);
    level.step_x = static_cast<T>(steps.empty() ? 1 / static_cast<double>(level.width) : steps[2 * l + 1]);
    add_halves(l, level);
    first = level.end();
    levels.push_back(std::move(level));
  }
  return levels;
}

}  // namespace ssd_ops
