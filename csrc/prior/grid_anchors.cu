#include "prior/grid_anchors.h"
#include "prior/levels.cu.h"

namespace ssd_ops {
namespace {

Tensor grid_anchors_cuda(std::vector<Tensor> feature_maps,  // each [..., H, W]
                         std::vector<double> shapes, std::vector<int64_t> shape_counts,
                         std::vector<double> image_size, std::vector<double> steps,
                         std::vector<double> offsets, bool clip) {
  const GridShapes g{shapes, shape_counts, image_size, steps, offsets};
  check_grid_anchors(feature_maps, g);
  const Launcher launcher("grid_anchors", feature_maps[0]);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        return launch_levels(launcher, levels_of<T>(feature_maps, g), feature_maps[0], offsets, clip);
      },
      feature_maps);
}

SSD_CUDA_IMPL(m) {
  m.impl("grid_anchors", TORCH_BOX(&grid_anchors_cuda));
}

}  // namespace
}  // namespace ssd_ops
