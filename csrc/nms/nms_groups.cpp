#include "nms/nms_groups.h"

#include "common/cpu_kernel.h"
#include "common/order.h"
#include "common/share_out.h"
#include "nms/grouped.h"

namespace ssd_ops {
namespace {

template <typename T, typename S>
class ImageGroups {
 public:
  explicit ImageGroups(OverlapLimit<T> limit) : limit_(limit) {}

  void run(const T* boxes,       // [count, 4]
           const S* scores,      // [count]
           const int64_t* idxs,  // [count], or null
           int64_t count,
           int64_t* groups) {  // [count]
    struct Worker {
      GreedyGroups<T> greedy;
      std::vector<int64_t> taken_by;
    };
    std::fill(groups, groups + count, int64_t{-1});
    sort_descending(scores, count, order_);
    const auto box_at = [&](int64_t i) { return load_box(boxes + 4 * i); };
    const auto class_at = [&](int64_t i) { return idxs ? idxs[i] : 0; };
    classes_.template each<Worker>(order_, class_at,
                                   [&](Worker& worker, const std::vector<int64_t>& indices, const size_t*) {
                                     worker.greedy.run(indices, box_at, limit_, worker.taken_by);
                                     for (size_t p = 0; p < indices.size(); ++p)
                                       groups[indices[p]] = indices[static_cast<size_t>(worker.taken_by[p])];
                                   });
  }

 private:
  OverlapLimit<T> limit_;
  std::vector<int64_t> order_;
  GroupedNms<T> classes_;
};

Tensor nms_groups_cpu(const Tensor& boxes,         // [..., N, 4]
                      const Tensor& scores,        // [..., N]
                      std::optional<Tensor> idxs,  // [..., N] int64
                      double iou_threshold, int64_t metric) {
  check_nms_groups(boxes, scores, idxs, iou_threshold, metric);
  Tensor out = new_groups(boxes);
  if (out.numel() == 0) return out;
  const int64_t count = boxes.size(boxes.dim() - 2), num_images = out.numel() / count;
  std::optional<Tensor> classes;
  if (idxs) classes = as_contiguous(*idxs);
  const int64_t* class_data = classes ? const_data<int64_t>(*classes) : nullptr;
  int64_t* groups = data<int64_t>(out);
  const auto run = [&](auto box, auto score) {
    using T = decltype(box);
    using S = decltype(score);
    const Reader<T> read_boxes(boxes);
    const Reader<S> read_scores(scores);
    share_out(num_images, [&](const auto& next) {
      ImageGroups<T, S> image_groups(overlap_limit<T>(iou_threshold, metric));
      std::vector<T> box_buffer;
      std::vector<S> score_buffer;
      for (int64_t image; next(image);) {
        const int64_t first = image * count;
        image_groups.run(read_boxes.read(4 * first, 4 * count, box_buffer),
                         read_scores.read(first, count, score_buffer),
                         class_data ? class_data + first : nullptr, count, groups + first);
      }
    });
  };
  dispatch_boxes_and_scores(run, boxes, scores);
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("nms_groups(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, int metric) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("nms_groups", SSD_CPU_KERNEL(nms_groups));
}

}  // namespace
}  // namespace ssd_ops
