#include "prior/multibox_priors.h"

#include "prior/levels.h"

namespace ssd_ops {
namespace {

constexpr int64_t kGrain = 16384;  // anchors per task: a hand-over costs as much as writing about that many

template <typename T>
void write_rows(const Level<T>& level, const std::vector<double>& offsets, bool clip, int64_t row_begin,
                int64_t row_end,
                T* anchors) {  // [A, 4], of all levels
  const int64_t per_cell = level.per_cell();
  T* out = anchors + 4 * (level.first + row_begin * level.width * per_cell);
  for (int64_t y = row_begin; y < row_end; ++y) {
    const T cy = prior_center(y, static_cast<T>(offsets[0]), level.step_y);
    for (int64_t x = 0; x < level.width; ++x) {
      const T cx = prior_center(x, static_cast<T>(offsets[1]), level.step_x);
      for (int64_t k = 0; k < per_cell; ++k, out += 4)
        store_box(prior_box(cy, cx, level.half[2 * k], level.half[2 * k + 1], clip), out);
    }
  }
}

Tensor multibox_priors_cpu(std::vector<Tensor> feature_maps,  // each [..., H, W]
                           std::vector<double> sizes, std::vector<int64_t> size_counts,
                           std::vector<double> ratios, std::vector<int64_t> ratio_counts,
                           std::vector<double> steps, std::vector<double> offsets, bool clip) {
  const PriorLevels p{sizes, size_counts, ratios, ratio_counts, steps, offsets};
  check_multibox_priors(feature_maps, p);
  return dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const std::vector<Level<T>> levels = levels_of<T>(feature_maps, p);
        Tensor out = new_real<T>(feature_maps[0], {1, levels.back().end(), 4});
        T* anchors = data<T>(out);
        for (const Level<T>& level : levels) {
          const int64_t grain = kGrain / std::max<int64_t>(level.width * level.per_cell(), 1) + 1;
          torch::stable::parallel_for(0, level.height, grain, [&](int64_t begin, int64_t end) {
            write_rows(level, p.offsets, clip, begin, end, anchors);
          });
        }
        return out;
      },
      feature_maps);
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multibox_priors(Tensor[] feature_maps, float[] sizes, int[] size_counts, float[] ratios, "
      "int[] ratio_counts, float[] steps, float[] offsets, bool clip) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multibox_priors", TORCH_BOX(&multibox_priors_cpu));
}

}  // namespace
}  // namespace ssd_ops
