#include "mining/hard_negative_mining.h"

#include "common/mining.h"

namespace ssd_ops {
namespace {

template <typename T>
class ImageMining {
 public:
  void select(const T* losses,            // [count]
              const int64_t* cls_labels,  // [count]
              int64_t count, double ratio, int64_t min_negatives,
              bool* selected) {  // [count]
    int64_t positives = 0;
    keys_.clear();
    negatives_.clear();
    for (int64_t i = 0; i < count; ++i) {
      positives += cls_labels[i] > 0;
      selected[i] = cls_labels[i] > 0;
      if (cls_labels[i] != 0) continue;
      keys_.push_back(loss_key(losses[i]));
      negatives_.push_back(i);
    }
    const int64_t negatives = static_cast<int64_t>(keys_.size());
    const int64_t wanted = negatives_wanted<double>(positives, negatives, ratio, min_negatives);
    choose_smallest(keys_, wanted, spare_, [&](size_t i) { selected[negatives_[i]] = true; });
  }

 private:
  std::vector<typename FloatTraits<T>::Bits> keys_, spare_;
  std::vector<int64_t> negatives_;
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
  bool* selected = data<bool>(out);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Reader<T> reader(losses);
        torch::stable::parallel_for(0, num_images, 1, [&](int64_t begin, int64_t end) {
          std::vector<T> buffer;
          ImageMining<T> mining;
          for (int64_t image = begin; image < end; ++image) {
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
  m.impl("hard_negative_mining", TORCH_BOX(&hard_negative_mining_cpu));
}

}  // namespace
}  // namespace ssd_ops
