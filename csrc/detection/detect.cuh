// The scores and the boxes of detect, for selection.cuh.
#pragma once

#include "common/activation.h"
#include "common/device.cuh"

namespace ssd_ops {

template <typename T, Activation kActivation>
struct HeadScores {
  Input cls_scores;  // [B, A, width]
  int64_t count, width;

  __device__ auto row(int64_t image, int64_t anchor) const {
    const Input in = cls_scores;
    const int64_t first = (image * count + anchor) * width;
    const auto logit = [in, first](int64_t c) { return load<T>(in, first + c); };
    if constexpr (kActivation == Activation::kSoftmax) {
      const Softmax<T> softmax = softmax_of<T>(logit, width);
      return [logit, softmax](int64_t c) { return probability(softmax, logit(c + 1)); };
    } else if constexpr (kActivation == Activation::kSigmoid) {
      return [logit](int64_t c) { return sigmoid(logit(c)); };
    } else {
      return logit;
    }
  }
};

// Decoded where they are asked for: of candidates alone.
template <typename T>
struct DecodedBoxes {
  Input offset_preds, anchors;  // [B, A, 4], [A, 4]
  int64_t count;
  Variances<T> variances;
  bool clip;

  __device__ Box<T> operator()(int64_t image, int64_t i) const {
    const Box<T> o = load_row<T>(offset_preds, image * count + i);
    const Box<T> box = decode({o.x1, o.y1, o.x2, o.y2}, load_row<T>(anchors, i), variances);
    return clip ? clip_unit(box) : box;
  }
};

}  // namespace ssd_ops
