#include "prior/levels.cu.h"
#include "prior/multibox_priors.h"

namespace ssd_ops {
namespace {

Tensor multibox_priors_cuda(std::vector<Tensor> feature_maps,  // each [..., H, W]
                            std::vector<double> sizes, std::vector<int64_t> size_counts,
                            std::vector<double> ratios, std::vector<int64_t> ratio_counts,
                            std::vector<double> steps, std::vector<double> offsets, bool clip) {
  const PriorLevels p{sizes, size_counts, ratios, ratio_counts, steps, offsets};
  check_multibox_priors(feature_maps, p);
  const Launcher launcher("multibox_priors", feature_maps[0]);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        return launch_levels(launcher, levels_of<T>(feature_maps, p), feature_maps[0], offsets, clip);
      },
      feature_maps);
}

SSD_CUDA_IMPL(m) {
  m.impl("multibox_priors", TORCH_BOX(&multibox_priors_cuda));
}

}  // namespace
}  // namespace ssd_ops
