#include "prior/multibox_priors.h"

#include "common/cpu_kernel.h"
#include "prior/write_levels.h"

namespace ssd_ops {
namespace {

Tensor multibox_priors_cpu(std::vector<Tensor> feature_maps,  // each [..., H, W]
                           std::vector<double> sizes, std::vector<int64_t> size_counts,
                           std::vector<double> ratios, std::vector<int64_t> ratio_counts,
                           std::vector<double> steps, std::vector<double> offsets, bool clip) {
  const PriorLevels p{sizes, size_counts, ratios, ratio_counts, steps, offsets};
  check_multibox_priors(feature_maps, p);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        return write_levels(levels_of<T>(feature_maps, p), feature_maps[0], offsets, clip);
      },
      feature_maps);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multibox_priors(Tensor[] feature_maps, float[] sizes, int[] size_counts, float[] ratios, "
      "int[] ratio_counts, float[] steps, float[] offsets, bool clip) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multibox_priors", SSD_CPU_KERNEL(multibox_priors));
}

}  // namespace
}  // namespace ssd_ops
