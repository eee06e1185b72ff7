#include "mining/hard_negative_mining.h"

#include "mining/selection.h"

namespace ssd_ops {
namespace {

template <typename T>
void select_image(const T* losses, const int64_t* cls_labels, int64_t count, double ratio,
                  int64_t min_negatives, std::vector<typename FloatTraits<T>::Bits>& keys, bool* selected) {
  int64_t positives = 0;
  keys.clear();
  for (int64_t i = 0; i < count; ++i) {
    positives += cls_labels[i] > 0;
    selected[i] = cls_labels[i] > 0;
    if (cls_labels[i] == 0) keys.push_back(loss_key(losses[i]));
  }
  const int64_t negatives = static_cast<int64_t>(keys.size());
  const int64_t wanted = negatives_wanted(positives, negatives, ratio, min_negatives);
  if (wanted == 0) return;
  // The key of the last one wanted: smaller keys are all in, equal ones in index order till it is full.
  std::nth_element(keys.begin(), keys.begin() + (wanted - 1), keys.end());
  const auto last = keys[static_cast<size_t>(wanted - 1)];
  int64_t equal =
      wanted - std::count_if(keys.begin(), keys.begin() + wanted, [&](auto key) { return key < last; });
  for (int64_t i = 0; i < count; ++i) {
    if (cls_labels[i] != 0) continue;
    const auto key = loss_key(losses[i]);
    if (key < last || (key == last && equal-- > 0)) selected[i] = true;
  }
}

Tensor hard_negative_mining_cpu(const Tensor& losses, const Tensor& cls_labels, double ratio,
                                int64_t min_negatives) {
  check_hard_negative_mining(losses, cls_labels, ratio, min_negatives);
  const int64_t num_images = losses.size(0), num_anchors = losses.size(1);
  Tensor out = torch::stable::new_empty(losses, {num_images, num_anchors}, ScalarType::Bool);
  if (out.numel() == 0) return out;
  const Tensor labels = torch::stable::contiguous(cls_labels);
  const int64_t* label_data = static_cast<const int64_t*>(labels.const_data_ptr());
  bool* selected = data<bool>(out);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        const Reader<T> reader(losses);
        torch::stable::parallel_for(0, num_images, 1, [&](int64_t begin, int64_t end) {
          std::vector<T> buffer;
          std::vector<typename FloatTraits<T>::Bits> keys;
          for (int64_t image = begin; image < end; ++image) {
            const int64_t first = image * num_anchors;
            select_image(reader.read(first, num_anchors, buffer), label_data + first, num_anchors, ratio,
                         min_negatives, keys, selected + first);
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
