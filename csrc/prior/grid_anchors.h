// grid_anchors: the anchors of every level of a detector, boxes of given width and height in each cell.
//
//   feature_maps  L tensors [..., H_l, W_l]; only their shapes, device and dtype are used
//   shapes        the levels' lists of (width, height), one after another, with their lengths in shape_counts
//   image_size    (height, width) of the image in pixels: shapes and steps are in pixels then, and are divided
//                 by it in double; empty: shapes and steps have the unit of the result, fractions or any other
//   steps         per level (y, x); empty: 1/H, 1/W of the image
//   offsets       (y, x), where in a cell its center lies, in cells
//   -> [1, A, 4] xyxy in fractions of the image, float32 (float64 where a feature map is float64)
//
// Levels in their order, cells row by row, and in a cell the shapes in their order, as in torchvision,
// RetinaFace and MediaPipe. A center is ((x + offset) * step); a corner is half a width from it.
#pragma once

#include "prior/levels.h"

namespace ssd_ops {

struct GridShapes {
  std::vector<double> shapes;
  std::vector<int64_t> shape_counts;
  std::vector<double> image_size;
  std::vector<double> steps;
  std::vector<double> offsets;
};

inline void check_grid_anchors(const std::vector<Tensor>& feature_maps,  // each [..., H, W]
                               const GridShapes& g) {
  constexpr const char* op = "grid_anchors";
  check_levels(op, feature_maps, g.steps, g.offsets);
  check_lists(op, "shapes", feature_maps.size(), g.shapes, g.shape_counts, 2, "(width, height)");
  if (!g.image_size.empty() && g.image_size.size() != 2)
    fail(op, "image_size must be (height, width), got ", g.image_size.size(), " numbers");
  for (const double side : g.image_size) check_positive(op, "image_size", side);
}

template <typename T>
std::vector<Level<T>> levels_of(const std::vector<Tensor>& feature_maps,  // each [..., H, W]
                                const GridShapes& g) {
  const double image_h = g.image_size.empty() ? 1 : g.image_size[0];
  const double image_w = g.image_size.empty() ? 1 : g.image_size[1];
  std::vector<double> steps = g.steps;
  for (size_t i = 0; i < steps.size(); ++i) steps[i] /= i % 2 ? image_w : image_h;
  const double* shape = g.shapes.data();
  return levels_of<T>(feature_maps, steps, [&](size_t l, Level<T>& level) {
    for (int64_t i = 0; i < g.shape_counts[l]; ++i, shape += 2) {
      level.half.push_back(static_cast<T>(shape[0] / image_w) / T(2));
      level.half.push_back(static_cast<T>(shape[1] / image_h) / T(2));
    }
  });
}

}  // namespace ssd_ops
