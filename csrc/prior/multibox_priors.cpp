#include "prior/multibox_priors.h"

namespace ssd_ops {
namespace {

constexpr int64_t kGrain = 16384;  // anchors per task: a hand-over costs as much as writing about that many

template <typename T>
struct Level {
  int64_t height, width, first;  // `first`: the index of its first anchor
  std::vector<T> half;           // (half width, half height) of each anchor of a cell
  T step_y, step_x;
};

template <typename T>
std::vector<Level<T>> levels_of(const std::vector<Tensor>& feature_maps, const PriorLevels& p) {
  std::vector<Level<T>> levels;
  const double *sizes = p.sizes.data(), *ratios = p.ratios.data();
  int64_t first = 0;
  for (size_t l = 0; l < feature_maps.size(); ++l) {
    const Tensor& map = feature_maps[l];
    Level<T> level;
    level.height = map.size(map.dim() - 2);
    level.width = map.size(map.dim() - 1);
    level.first = first;
    const double h = static_cast<double>(level.height), w = static_cast<double>(level.width);
    level.step_y = static_cast<T>(p.steps.empty() ? 1 / h : p.steps[2 * l]);
    level.step_x = static_cast<T>(p.steps.empty() ? 1 / w : p.steps[2 * l + 1]);
    const auto add = [&](T width, T height) {
      level.half.push_back(width * static_cast<T>(h) / static_cast<T>(w) / T(2));
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
    first += level.height * level.width * static_cast<int64_t>(level.half.size() / 2);
    levels.push_back(std::move(level));
  }
  return levels;
}

template <typename T>
void write_rows(const Level<T>& level, const std::vector<double>& offsets, bool clip, int64_t row_begin,
                int64_t row_end, T* anchors) {
  const int64_t per_cell = static_cast<int64_t>(level.half.size() / 2);
  T* out = anchors + 4 * (level.first + row_begin * level.width * per_cell);
  for (int64_t y = row_begin; y < row_end; ++y) {
    const T cy = (static_cast<T>(y) + static_cast<T>(offsets[0])) * level.step_y;
    for (int64_t x = 0; x < level.width; ++x) {
      const T cx = (static_cast<T>(x) + static_cast<T>(offsets[1])) * level.step_x;
      for (int64_t k = 0; k < per_cell; ++k, out += 4) {
        const T half_w = level.half[2 * k], half_h = level.half[2 * k + 1];
        const Box<T> box{cx - half_w, cy - half_h, cx + half_w, cy + half_h};
        store_box(clip ? clip_unit(box) : box, out);
      }
    }
  }
}

Tensor multibox_priors_cpu(std::vector<Tensor> feature_maps, std::vector<double> sizes,
                           std::vector<int64_t> size_counts, std::vector<double> ratios,
                           std::vector<int64_t> ratio_counts, std::vector<double> steps,
                           std::vector<double> offsets, bool clip) {
  const PriorLevels p{sizes, size_counts, ratios, ratio_counts, steps, offsets};
  check_multibox_priors(feature_maps, p);
  Tensor out = feature_maps[0];
  bool is_double = false;
  for (const Tensor& map : feature_maps) is_double |= map.scalar_type() == ScalarType::Double;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const std::vector<Level<T>> levels = levels_of<T>(feature_maps, p);
    int64_t total = 0;
    for (const Level<T>& level : levels)
      total += level.height * level.width * static_cast<int64_t>(level.half.size() / 2);
    out = new_real<T>(feature_maps[0], {1, total, 4});
    T* anchors = data<T>(out);
    for (const Level<T>& level : levels) {
      const int64_t row_anchors = level.width * static_cast<int64_t>(level.half.size() / 2);
      const int64_t grain = kGrain / std::max<int64_t>(row_anchors, 1) + 1;
      torch::stable::parallel_for(0, level.height, grain, [&](int64_t begin, int64_t end) {
        write_rows(level, p.offsets, clip, begin, end, anchors);
      });
    }
  };
  is_double ? run(double()) : run(float());
  return out;
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
