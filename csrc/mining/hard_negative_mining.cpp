#include "mining/hard_negative_mining.h"

#include "common/cpu_kernel.h"
#include "common/mining.h"
#include "common/share_out.h"
#include "common/smallest.h"

namespace ssd_ops {
namespace {

struct LabelCounts {
  int64_t positives, negatives;
};

// Selects the positives, and gives a key to each negative.
template <typename T>
SSD_HOST_DEVICE LabelCounts read_image_lanes(const T* __restrict losses,            // [count]
                                             const int64_t* __restrict cls_labels,  // [count]
                                             int64_t count,
                                             LossKey<T>* __restrict keys,     // [count]
                                             uint8_t* __restrict selected) {  // [count]
  LabelCounts counts{0, 0};
  for (int64_t i = 0; i < count; ++i) {
    counts.positives += cls_labels[i] > 0;
    counts.negatives += cls_labels[i] == 0;
    selected[i] = cls_labels[i] > 0 ? 1 : 0;
    const LossKey<T> key = loss_key(losses[i]);
    keys[i] = cls_labels[i] == 0 ? key : kNoKey<LossKey<T>>;
  }
  return counts;
}

SSD_SIMD(LabelCounts, read_image,
         (const float* losses, const int64_t* cls_labels, int64_t count, uint32_t* keys, uint8_t* selected),
         (losses, cls_labels, count, keys, selected))
SSD_SIMD(LabelCounts, read_image,
         (const double* losses, const int64_t* cls_labels, int64_t count, uint64_t* keys, uint8_t* selected),
         (losses, cls_labels, count, keys, selected))

template <typename T>
class ImageMining {
 public:
  void select(const T* losses,            // [count]
              const int64_t* cls_labels,  // [count]
              int64_t count, double ratio, int64_t min_negatives,
              uint8_t* selected) {  // [count]
    keys_.resize(static_cast<size_t>(count));
    const LabelCounts counts = read_image(losses, cls_labels, count, keys_.data(), selected);
    const int64_t wanted = negatives_wanted<double>(counts.positives, counts.negatives, ratio, min_negatives);
    choose_smallest(keys_, wanted, selected);
  }

 private:
  std::vector<LossKey<T>> keys_;
};

Tensor hard_negative_mining_cpu(const Tensor& losses,      // [B, A]
                                const Tensor& cls_labels,  // [B, A] int64
                                double ratio, int64_t min_negatives) {
  check_hard_negative_mining(losses, cls_labels, ratio, min_negatives);
  const int64_t num_images = losses.size(0), num_anchors = losses.size(1);
  Tensor out = new_tensor(losses, {num_images, num_anchors}, ScalarType::Bool);
  if (out.numel() == 0) return out;
  const Tensor labels = as_contiguous(cls_labels);
  const int64_t* label_data = const_data<int64_t>(labels);
  uint8_t* selected = data<uint8_t>(out);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Reader<T> reader(losses);
        share_out(num_images, [&](const auto& next) {
          std::vector<T> buffer;
          ImageMining<T> mining;
          for (int64_t image; next(image);) {
            const int64_t first = image * num_anchors;
            mining.select(reader.read(first, num_anchors, buffer), label_data + first, num_anchors, ratio,
                          min_negatives, selected + first);
          }
        });
      },
      losses);
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ops, m) {
  m.def("hard_negative_mining(Tensor losses, Tensor cls_labels, float ratio, int min_negatives) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CPU, m) {
  m.impl("hard_negative_mining", SSD_CPU_KERNEL(hard_negative_mining));
}

}  // namespace
}  // namespace ssd_ops
