#include "prior/grid_anchors.h"

#include "common/cpu_kernel.h"
#include "prior/write_levels.h"

namespace ssd_ops {
namespace {

Tensor grid_anchors_cpu(std::vector<Tensor> feature_maps,  // each [..., H, W]
                        std::vector<double> shapes, std::vector<int64_t> shape_counts,
                        std::vector<double> image_size, std::vector<double> steps,
                        std::vector<double> offsets, bool clip) {
  const GridShapes g{shapes, shape_counts, image_size, steps, offsets};
  check_grid_anchors(feature_maps, g);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        return write_levels(levels_of<T>(feature_maps, g), feature_maps[0], offsets, clip);
      },
      feature_maps);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "grid_anchors(Tensor[] feature_maps, float[] shapes, int[] shape_counts, float[] image_size, "
      "float[] steps, float[] offsets, bool clip) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("grid_anchors", SSD_CPU_KERNEL(grid_anchors));
}

}  // namespace
}  // namespace ssd_ops
