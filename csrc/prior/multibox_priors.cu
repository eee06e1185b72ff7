#include "common/launch.cu.h"
#include "prior/levels.h"
#include "prior/multibox_priors.cuh"

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
        const std::vector<Level<T>> levels = levels_of<T>(feature_maps, p);
        Tensor out = new_real<T>(feature_maps[0], {1, levels.back().end(), 4});
        PriorTable<T> table = {};
        table.offset_y = static_cast<T>(offsets[0]);
        table.offset_x = static_cast<T>(offsets[1]);
        table.clip = clip;
        const auto launch = [&] {
          if (table.threads > 0)
            launcher.run(&multibox_priors_kernel<T>, ceil_div(table.threads, kPriorThreads), kPriorThreads,
                         table, data<T>(out));
          table.parts = table.halves = 0;
          table.threads = 0;
        };
        for (const Level<T>& level : levels) {
          if (level.height * level.width == 0) continue;
          for (int64_t begin = 0; begin < level.per_cell();) {
            if (table.parts == kPriorParts || table.halves == kPriorHalves) launch();
            const int64_t count = std::min<int64_t>(kPriorHalves - table.halves, level.per_cell() - begin);
            table.part[table.parts++] = {table.threads,
                                         level.first,
                                         level.width,
                                         static_cast<int32_t>(count),
                                         static_cast<int32_t>(begin),
                                         static_cast<int32_t>(level.per_cell()),
                                         table.halves,
                                         level.step_y,
                                         level.step_x};
            std::copy_n(&level.half[2 * begin], 2 * count, &table.half[2 * table.halves]);
            table.halves += static_cast<int32_t>(count);
            table.threads += level.height * level.width * count;
            begin += count;
          }
        }
        launch();
        return out;
      },
      feature_maps);
}

SSD_CUDA_IMPL(m) {
  m.impl("multibox_priors", TORCH_BOX(&multibox_priors_cuda));
}

}  // namespace
}  // namespace ssd_ops
