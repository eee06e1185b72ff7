#include "common/launch.cu.h"
#include "mining/hard_negative_mining.cuh"
#include "mining/hard_negative_mining.h"

namespace ssd_ops {
namespace {

Tensor hard_negative_mining_cuda(const Tensor& losses,      // [B, A]
                                 const Tensor& cls_labels,  // [B, A] int64
                                 double ratio, int64_t min_negatives) {
  check_hard_negative_mining(losses, cls_labels, ratio, min_negatives);
  const int64_t num_images = losses.size(0), num_anchors = losses.size(1);
  const Launcher launcher("hard_negative_mining", losses);
  Tensor out = new_tensor(losses, {num_images, num_anchors}, ScalarType::Bool);
  if (out.numel() == 0) return out;
  if (num_anchors > std::numeric_limits<int32_t>::max())
    launcher.fail("losses must have fewer than 2^31 anchors on a GPU, got ", num_anchors);
  const Tensor labels = as_contiguous(cls_labels);
  const DeviceInput loss_input(losses);
  dispatch_real(
      [&](auto zero) {
        using T = decltype(zero);
        using Key = typename FloatTraits<T>::Bits;
        const int64_t with_keys = mining_shared_bytes<Key>(num_anchors);
        const bool keep = with_keys <= launcher.shared_limit();
        const int64_t shared_bytes = keep ? with_keys : mining_shared_bytes<Key>(0);
        const auto kernel =
            keep ? &hard_negative_mining_kernel<T, true> : &hard_negative_mining_kernel<T, false>;
        launcher.run_with_shared(kernel, num_images, kSelectThreads, shared_bytes, loss_input,
                                 const_data<int64_t>(labels), static_cast<unsigned>(num_anchors), ratio,
                                 min_negatives, data<bool>(out));
      },
      losses);
  return out;
}

SSD_CUDA_IMPL(m) {
  m.impl("hard_negative_mining", TORCH_BOX(&hard_negative_mining_cuda));
}

}  // namespace
}  // namespace ssd_ops
