#include "target/assign_anchors.h"

#include <tuple>

#include "common/cpu_kernel.h"
#include "common/share_out.h"
#include "target/matching.h"

namespace ssd_ops {
namespace {

// The boxes of one image that can match, and which of its rows they are.
template <typename T>
struct GtRows {
  std::vector<Box<T>> boxes;
  std::vector<int32_t> rows;

  void read(const T* values,  // [count, 4]
            int64_t count) {
    boxes.clear();
    rows.clear();
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> box = load_box(values + 4 * i);
      if (!has_extent(box)) continue;
      boxes.push_back(box);
      rows.push_back(static_cast<int32_t>(i));
    }
  }
};

template <typename T>
void write_matches(const AnchorBlocks<T>& anchors, const GtRows<T>& gts, const Matcher<T>& matcher,
                   const std::vector<int32_t>& matched,
                   int64_t* idxs,  // [A]
                   T* ious) {      // [A]
  for (int64_t i = 0; i < anchors.count; ++i) {
    const int32_t gt = matched[i];
    ious[i] = gt < 0 || gt == matcher.best_gt(i) ? matcher.best_iou(i) : iou(anchors.box(i), gts.boxes[gt]);
    idxs[i] = gt < 0 ? gt : gts.rows[gt];
  }
}

std::tuple<Tensor, Tensor> assign_anchors_cpu(const Tensor& anchors,            // [A, 4] or [1, A, 4]
                                              const Tensor& gt_boxes,           // [B, G, 4] or [N, 4]
                                              std::optional<Tensor> gt_counts,  // [B] or [B + 1] int64
                                              double iou_threshold, double background_threshold,
                                              int64_t force_match,
                                              std::optional<Tensor> ignore_boxes,  // [B, K, 4]
                                              double ignore_threshold) {
  check_assign_anchors(anchors, gt_boxes, gt_counts, iou_threshold, background_threshold, force_match,
                       ignore_boxes, ignore_threshold);
  if (gt_counts) gt_counts = as_contiguous(*gt_counts);
  const GtLayout layout = gt_layout(gt_boxes, gt_counts);
  const int64_t num_anchors = anchors.numel() / 4;
  Tensor idxs = new_integers(anchors, {layout.num_images, num_anchors});
  const Tensor ious = dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        Tensor ious = new_real<T>(anchors, {layout.num_images, num_anchors});
        if (ious.numel() == 0) return ious;
        const MatchRules<T> rules{static_cast<T>(iou_threshold), static_cast<T>(background_threshold),
                                  static_cast<Force>(force_match)};
        const AnchorBlocks<T> blocks = lay_out_anchors<T>(anchors);
        const Reader<T> reader(gt_boxes);
        const IgnoredRegions<T> regions(ignore_boxes, ignore_threshold);
        int64_t* idx_data = data<int64_t>(idxs);
        T* iou_data = data<T>(ious);
        share_out(layout.num_images, [&](const auto& next) {
          Matcher<T> matcher(blocks);
          GtRows<T> gts;
          std::vector<T> buffer;
          std::vector<int32_t> matched;
          for (int64_t image; next(image);) {
            const GtRange range = layout.range(image);
            const int64_t count = range.end - range.begin;
            gts.read(reader.read(4 * range.begin, 4 * count, buffer), count);
            matcher.match(gts.boxes, rules, matched);
            matcher.ignore(regions, image, matched);
            write_matches(blocks, gts, matcher, matched, idx_data + image * num_anchors,
                          iou_data + image * num_anchors);
          }
        });
        return ious;
      },
      anchors, gt_boxes, ignore_boxes);
  return {idxs, ious};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "assign_anchors(Tensor anchors, Tensor gt_boxes, Tensor? gt_counts, float iou_threshold, "
      "float background_threshold, int force_match, Tensor? ignore_boxes, float ignore_threshold) "
      "-> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("assign_anchors", SSD_CPU_KERNEL(assign_anchors));
}

}  // namespace
}  // namespace ssd_ops
