#include "target/multibox_target.h"

#include <cstring>
#include <tuple>

#include "target/ground_truth.h"
#include "target/matching.h"

namespace ssd_ops {
namespace {

template <typename T>
struct GroundTruths {
  std::vector<Box<T>> boxes;
  std::vector<int64_t> classes;
};

// The rows that are not padding, in their order.
template <typename T>
void read_gts(const T* rows, int64_t count, GroundTruths<T>& gts) {
  gts.boxes.clear();
  gts.classes.clear();
  for (int64_t i = 0; i < count; ++i, rows += 5) {
    const Box<T> box = load_box(rows + 1);
    if (!is_ground_truth(rows[0], box)) continue;
    gts.boxes.push_back(box);
    gts.classes.push_back(static_cast<int64_t>(rows[0]));
  }
}

template <typename T>
void write_targets(const AnchorBlocks<T>& anchors, const GroundTruths<T>& gts,
                   const std::vector<int32_t>& matched, Variances<T> variances, T* offsets, T* masks,
                   int64_t* cls_labels) {
  const size_t count = static_cast<size_t>(anchors.count);
  std::memset(offsets, 0, 4 * count * sizeof(T));
  std::memset(masks, 0, 4 * count * sizeof(T));
  std::memset(cls_labels, 0, count * sizeof(int64_t));
  for (size_t i = 0; i < count; ++i) {
    if (matched[i] < 0) continue;
    const Offset<T> offset = encode(gts.boxes[matched[i]], anchors.box(static_cast<int64_t>(i)), variances,
                                    static_cast<T>(kD2lEps));
    store_box<T>({offset.x, offset.y, offset.w, offset.h}, offsets + 4 * i);
    store_box<T>({1, 1, 1, 1}, masks + 4 * i);
    cls_labels[i] = gts.classes[matched[i]] + 1;
  }
}

std::tuple<Tensor, Tensor, Tensor> multibox_target_cpu(const Tensor& anchors, const Tensor& labels,
                                                       double iou_threshold, std::vector<double> variances,
                                                       int64_t semantics) {
  check_multibox_target(anchors, labels, iou_threshold, variances, semantics);
  const int64_t num_images = labels.size(0), num_gts = labels.size(1), num_anchors = anchors.numel() / 4;
  Tensor offsets = anchors, masks = anchors;
  Tensor cls_labels = torch::stable::new_empty(anchors, {num_images, num_anchors}, ScalarType::Long);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        offsets = new_real<T>(anchors, {num_images, 4 * num_anchors});
        masks = new_real<T>(anchors, {num_images, 4 * num_anchors});
        if (num_images == 0 || num_anchors == 0) return;
        const AnchorBlocks<T> blocks = lay_out_anchors<T>(anchors);
        const Reader<T> label_reader(labels);
        T *offset_data = data<T>(offsets), *mask_data = data<T>(masks);
        int64_t* cls_data = data<int64_t>(cls_labels);
        // One image is enough work for a task: at 5,444 anchors it writes 218 kB.
        torch::stable::parallel_for(0, num_images, 1, [&](int64_t begin, int64_t end) {
          Matcher<T> matcher(blocks);
          GroundTruths<T> gts;
          std::vector<T> buffer;
          std::vector<int32_t> matched;
          for (int64_t image = begin; image < end; ++image) {
            read_gts(label_reader.read(image * num_gts * 5, num_gts * 5, buffer), num_gts, gts);
            matcher.match_bipartite(gts.boxes, static_cast<T>(iou_threshold), matched);
            write_targets(blocks, gts, matched, to_variances<T>(variances),
                          offset_data + 4 * image * num_anchors, mask_data + 4 * image * num_anchors,
                          cls_data + image * num_anchors);
          }
        });
      },
      anchors, labels);
  return {offsets, masks, cls_labels};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def(
      "multibox_target(Tensor anchors, Tensor labels, float iou_threshold, float[] variances, int semantics) "
      "-> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("multibox_target", TORCH_BOX(&multibox_target_cpu));
}

}  // namespace
}  // namespace ssd_ops
