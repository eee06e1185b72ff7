// The ops of ssd_ops for C++: the functions of the Python package, on torch::stable::Tensor.
//
// Link a program with libssd_ops.so, and with libssd_ops_cuda.so for tensors on a GPU (CMake does both:
// docs/deploy.md). Everything here is inline and calls the ops through torch's dispatcher, so one library
// serves every torch from 2.11 on, and nothing of Python is needed. C++17; with C++20 options can be named:
//
//   ssd_ops::Detections found = ssd_ops::detect(cls_scores, offset_preds, anchors, {.iou_threshold = 0.5});
//
// What all functions have in common:
// - Names, order and defaults are those of Python. What Python takes by keyword alone is in a struct of
//   options. Where Python takes a name such as "softmax" there is an enum, where it takes None a
//   std::optional.
// - `B` images, `A` anchors, `G` ground truths (gts), `C` classes without background, `N` boxes. Boxes are
//   corners (x1, y1, x2, y2).
// - Tensors may be float16, bfloat16, float32 or float64, mixed, and do not have to be contiguous. Arithmetic
//   and results are float32, or float64 if at least one input is. Indices, labels and counts are int64.
// - Equal scores are in the order of their indices. The same input gives the same bits on every run, with any
//   number of threads, on the CPU and on a GPU.
// - Outputs carry no gradient.
// - A wrong argument is a std::runtime_error. torch before 2.13 leaves out its text, which says what is
//   wrong, and writes it to stderr.
//
// Python's `pack_targets` and `merge_boxes` are not here: they are no ops, but plain PyTorch. Where Python
// takes a list of one tensor for each image, give one padded tensor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

extern "C" {
const char* ssd_ops_version();     // of libssd_ops.so, "0.1.0"
const char* ssd_ops_build_info();  // JSON: its compiler, and the torch it was built with
}

// Hidden, as torch::stable is: of two shared libraries that include this header, each keeps its own
// functions.
#pragma GCC visibility push(hidden)

namespace ssd_ops {

using torch::stable::Tensor;

// The numbers are those of the schemas.

// Of class scores. softmax: over the classes, background first; sigmoid: of each class; none: they are
// scores.
enum class Activation : int64_t { none = 0, softmax = 1, sigmoid = 2 };

// How overlap is measured: intersection over union, or over the area of the smaller box.
enum class Metric : int64_t { iou = 0, ios = 1 };

// What the four offsets of a box are: those of SSD, RetinaNet and Faster R-CNN (center), of BlazeFace
// (linear), or the distances to its sides, of FCOS (distance). The docstring of Python's `encode_boxes` has
// the formulas.
enum class Coding : int64_t { center = 0, linear = 1, distance = 2 };

// The rules of "Dive into Deep Learning", of MXNet 1.9, and of torchvision's SSD.
enum class Semantics : int64_t { d2l = 0, mxnet = 1, torchvision = 2 };

// Which anchors a gt gets that would have none by its IoUs; see `assign_anchors`.
enum class ForceMatch : int64_t { none = 0, bipartite = 1, argmax = 2, low_quality = 3 };

// What boxes are clipped to: true is 0..1, {height, width} is 0..width and 0..height, false is not at all.
class Clip {
 public:
  Clip(bool unit) : size_{unit ? 1.0 : 0.0, unit ? 1.0 : 0.0} {}
  Clip(double height, double width) : size_{height, width} {
    if (!(height > 0 && width > 0)) throw std::runtime_error("clip: height and width must be positive");
  }
  std::vector<double> size() const { return {size_[0], size_[1]}; }

 private:
  std::array<double, 2> size_;
};

using Pair = std::array<double, 2>;  // (height, width) of an image, or (y, x) of a step or a position
using Variances = std::array<double, 4>;

// The detections of B images, K rows for each, highest score first. The first counts[b] rows of image b are
// detections. The other rows are padding: boxes and scores are 0, labels and indices are -1.
struct Detections {
  Tensor boxes;    // [B, K, 4] xyxy
  Tensor scores;   // [B, K]
  Tensor labels;   // [B, K] int64, class from 0, without background
  Tensor indices;  // [B, K] int64, index of the anchor or input box
  Tensor counts;   // [B] int64, number of detections
};

namespace detail {

template <typename... Results, size_t... I>
std::tuple<Results...> unpack(StableIValue* stack, std::index_sequence<I...>) {
  return {torch::stable::detail::to<Results>(stack[I])...};
}

// Calls an op. The arguments have the types of its schema: Tensor, double, int64_t, bool, vectors, optionals.
template <typename... Results, typename... Arguments>
std::tuple<Results...> call(const char* op, const Arguments&... arguments) {
  std::array<StableIValue, std::max(sizeof...(Arguments), sizeof...(Results))> stack{
      torch::stable::detail::from(arguments)...};
  const std::string name = std::string("ssd_ops::") + op;
  const AOTITorchError error = torch_call_dispatcher(name.c_str(), "", stack.data(), TORCH_ABI_VERSION);
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
  STABLE_TORCH_ERROR_CODE_CHECK(error);
#else
  if (error != TORCH_SUCCESS) throw std::runtime_error(std::string(op) + ": failed; stderr says why");
#endif
  return unpack<Results...>(stack.data(), std::index_sequence_for<Results...>());
}

template <typename Choice>
int64_t number(Choice choice) {
  return static_cast<int64_t>(choice);
}

// No IoU is above 1.
inline double threshold(double iou_threshold) {
  return std::min(iou_threshold, 1.0);
}

inline std::vector<double> variances(const std::optional<Variances>& given, Coding coding = Coding::center) {
  const Variances none = coding == Coding::center ? Variances{0.1, 0.1, 0.2, 0.2} : Variances{1, 1, 1, 1};
  const Variances& values = given ? *given : none;
  return {values.begin(), values.end()};
}

inline double max_log_size(const std::optional<double>& given) {
  return given && !std::isinf(*given) ? *given : -1.0;
}

inline std::pair<std::vector<int64_t>, int64_t> levels(const char* op,
                                                       const std::optional<std::vector<int64_t>>& counts,
                                                       const std::optional<int64_t>& topk) {
  if (counts.has_value() != topk.has_value())
    throw std::runtime_error(std::string(op) +
                             ": level_counts and topk_per_level must be given together, got one of them");
  if (!counts) return {{0}, -1};
  return {*counts, *topk};
}

template <typename Numbers>
std::vector<double> flat(const std::vector<Numbers>& rows) {
  std::vector<double> result;
  for (const Numbers& row : rows) result.insert(result.end(), row.begin(), row.end());
  return result;
}

template <typename Row>
std::vector<int64_t> lengths(const std::vector<Row>& rows) {
  std::vector<int64_t> result;
  for (const Row& row : rows) result.push_back(static_cast<int64_t>(row.size()));
  return result;
}

inline Detections detections(std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> found) {
  auto& [boxes, scores, labels, indices, counts] = found;
  return {std::move(boxes), std::move(scores), std::move(labels), std::move(indices), std::move(counts)};
}

}  // namespace detail

// The version of the library that is loaded.
inline std::string version() {
  return ssd_ops_version();
}

// ---- Anchors

struct GridAnchorsOptions {
  std::optional<Pair> image_size = std::nullopt;  // (height, width): shapes and steps are in pixels then
  std::optional<std::vector<Pair>> steps = std::nullopt;  // (y, x) of each level; none: cells fill the image
  Pair offsets = {0.5, 0.5};                              // (y, x) position of the center in its cell, 0..1
  bool clip = false;                                      // the boxes to 0..1
};

// The anchors of all levels of a detector, from the widths and heights of its boxes.
//
// feature_maps: L tensors [..., H_l, W_l]; only their sizes, dtypes and device are used. shapes: for each
// level at least one (width, height), in fractions of the image, or in pixels with an image_size.
// Returns [1, A, 4] xyxy in fractions of the image. The order is: level, row, column, shape.
inline Tensor grid_anchors(const std::vector<Tensor>& feature_maps,
                           const std::vector<std::vector<Pair>>& shapes,
                           const GridAnchorsOptions& options = {}) {
  std::vector<double> sides, size;
  for (const std::vector<Pair>& level : shapes)
    for (const Pair& shape : level) sides.insert(sides.end(), shape.begin(), shape.end());
  if (options.image_size) size.assign(options.image_size->begin(), options.image_size->end());
  const std::vector<double> offsets(options.offsets.begin(), options.offsets.end());
  const std::vector<double> steps = detail::flat(options.steps.value_or(std::vector<Pair>()));
  return std::get<0>(detail::call<Tensor>("grid_anchors", feature_maps, sides, detail::lengths(shapes), size,
                                          steps, offsets, options.clip));
}

struct MultiboxPriorsOptions {
  std::optional<Pair> image_size = std::nullopt;  // (height, width): sizes and steps are in pixels then
  std::optional<std::vector<Pair>> steps = std::nullopt;  // (y, x) of each level; none: cells fill the image
  Pair offsets = {0.5, 0.5};                              // (y, x) position of the center in its cell, 0..1
  bool clip = false;                                      // the boxes to 0..1
};

// The anchors of all levels of a detector: S + R - 1 boxes in each cell.
//
// feature_maps: L tensors [..., H_l, W_l]; only their sizes, dtypes and device are used. sizes: for each
// level S sizes in fractions of the image's height, or in pixels with an image_size. ratios: for each level R
// ratios of width to height. The boxes of a cell are all sizes with the first ratio, then the first size with
// the others.
// Returns [1, A, 4] xyxy in fractions of the image. The order is: level, row, column, box.
inline Tensor multibox_priors(const std::vector<Tensor>& feature_maps,
                              const std::vector<std::vector<double>>& sizes,
                              const std::vector<std::vector<double>>& ratios,
                              const MultiboxPriorsOptions& options = {}) {
  if (options.image_size) {
    std::vector<std::vector<Pair>> shapes(std::min(sizes.size(), ratios.size()));
    for (size_t level = 0; level < shapes.size(); ++level) {
      const auto add = [&](double size, double ratio) {
        shapes[level].push_back({size * std::sqrt(ratio), size / std::sqrt(ratio)});
      };
      for (const double size : sizes[level]) add(size, ratios[level].at(0));
      for (size_t i = 1; i < ratios[level].size(); ++i) add(sizes[level].at(0), ratios[level][i]);
    }
    return grid_anchors(feature_maps, shapes,
                        {options.image_size, options.steps, options.offsets, options.clip});
  }
  const std::vector<double> offsets(options.offsets.begin(), options.offsets.end());
  const std::vector<double> steps = detail::flat(options.steps.value_or(std::vector<Pair>()));
  return std::get<0>(detail::call<Tensor>("multibox_priors", feature_maps, detail::flat(sizes),
                                          detail::lengths(sizes), detail::flat(ratios),
                                          detail::lengths(ratios), steps, offsets, options.clip));
}

struct MultiboxPriorOptions {
  std::optional<Pair> image_size = std::nullopt;  // as in `multibox_priors`
  std::optional<Pair> steps = std::nullopt;       // (y, x); none: the cells fill the image
  Pair offsets = {0.5, 0.5};
  bool clip = false;
};

// The anchors [1, H*W*(S+R-1), 4] of one feature map [..., H, W]: see `multibox_priors`.
inline Tensor multibox_prior(const Tensor& feature_map, const std::vector<double>& sizes,
                             const std::vector<double>& ratios, const MultiboxPriorOptions& options = {}) {
  std::optional<std::vector<Pair>> steps;
  if (options.steps) steps = {*options.steps};
  return multibox_priors({feature_map}, {sizes}, {ratios},
                         {options.image_size, steps, options.offsets, options.clip});
}

// ---- Boxes

struct BoxIouOptions {
  Metric metric = Metric::iou;
};

// The overlap of every pair of boxes: boxes1 [..., N, 4] and boxes2 [..., M, 4], with the same leading sizes,
// give [..., N, M] in 0..1. It is 0, never NaN, without overlap, without area, or with a NaN corner.
inline Tensor box_iou(const Tensor& boxes1, const Tensor& boxes2, const BoxIouOptions& options = {}) {
  return std::get<0>(detail::call<Tensor>("box_iou", boxes1, boxes2, detail::number(options.metric)));
}

struct EncodeBoxesOptions {
  std::optional<Variances> variances = std::nullopt;  // divide the offsets; none: SSD's, or 1 if not center
  double eps = 0.0;                                   // added inside the logarithm of `center`
  Coding coding = Coding::center;
};

// Offsets of boxes [..., A, 4] to anchors [A, 4], [1, A, 4] or of the shape of boxes. Returns the shape of
// boxes.
inline Tensor encode_boxes(const Tensor& boxes, const Tensor& anchors,
                           const EncodeBoxesOptions& options = {}) {
  return std::get<0>(detail::call<Tensor>("encode_boxes", boxes, anchors,
                                          detail::variances(options.variances, options.coding), options.eps,
                                          detail::number(options.coding)));
}

struct DecodeBoxesOptions {
  std::optional<Variances> variances = std::nullopt;  // as in `encode_boxes`
  Clip clip = false;
  Coding coding = Coding::center;
  std::optional<double> max_log_size = std::nullopt;  // bound of log of the size ratio; none: no bound
};

// Boxes of offsets [..., A, 4] to anchors [A, 4], [1, A, 4] or of the shape of offsets: xyxy in the unit of
// the anchors. If exp of an offset overflows, the box is infinite. NaN stays NaN.
inline Tensor decode_boxes(const Tensor& offsets, const Tensor& anchors,
                           const DecodeBoxesOptions& options = {}) {
  return std::get<0>(detail::call<Tensor>(
      "decode_boxes", offsets, anchors, detail::variances(options.variances, options.coding),
      options.clip.size(), detail::number(options.coding), detail::max_log_size(options.max_log_size)));
}

// ---- Targets of training

struct AssignAnchorsOptions {
  double iou_threshold = 0.5;
  std::optional<double> background_threshold = std::nullopt;  // none: iou_threshold
  ForceMatch force_match = ForceMatch::bipartite;
  std::optional<Tensor> ignore_boxes = std::nullopt;  // [B, K, 4], neither a gt nor background
  double ignore_threshold = 0.5;                      // the share of an anchor that lies in one of them
};

// Assigns each anchor to a gt or to the background, for a batch of images.
//
// anchors [1, A, 4] or [A, 4]. gt_boxes [B, G, 4] with gt_counts [B] int64, the number of real boxes of each
// image (none: all G); or [N, 4], the boxes of all images, with gt_counts [B + 1], the rows where images
// begin. An anchor takes the gt of highest IoU from iou_threshold on, and is background below
// background_threshold. Then each gt gets the free anchor of highest IoU, whatever it is (bipartite), its
// best anchor, where a later gt replaces an earlier one (argmax), or all anchors of its highest IoU
// (low_quality).
// Returns matched_idxs [B, A] int64, the row of the gt, -1 for background, -2 between the thresholds or
// ignored; and matched_ious [B, A].
inline std::tuple<Tensor, Tensor> assign_anchors(const Tensor& anchors, const Tensor& gt_boxes,
                                                 const std::optional<Tensor>& gt_counts = std::nullopt,
                                                 const AssignAnchorsOptions& options = {}) {
  return detail::call<Tensor, Tensor>("assign_anchors", anchors, gt_boxes, gt_counts, options.iou_threshold,
                                      options.background_threshold.value_or(options.iou_threshold),
                                      detail::number(options.force_match), options.ignore_boxes,
                                      options.ignore_threshold);
}

struct MultiboxTargetOptions {
  double iou_threshold = 0.5;
  std::optional<Variances> variances = std::nullopt;           // as in `encode_boxes`
  std::optional<double> negative_mining_ratio = std::nullopt;  // negatives for a positive; none: all
  double negative_mining_threshold = 0.5;  // an anchor of this IoU with a gt is never mined
  int64_t min_negatives = 0;
  int64_t ignore_label = -1;  // of an anchor that is neither matched nor mined
  Semantics semantics = Semantics::d2l;
  Coding coding = Coding::center;
  std::optional<Tensor> ignore_boxes = std::nullopt;  // as in `assign_anchors`
  double ignore_threshold = 0.5;
};

// The training targets of each anchor.
//
// anchors [1, A, 4] or [A, 4] xyxy; labels [B, G, 5] rows (class, x1, y1, x2, y2), class from 0, where a row
// of a negative class is padding; cls_preds [B, C + 1, A] logits, background first, needed with
// negative_mining_ratio.
// Returns offsets [B, 4A], 0 without a match; masks [B, 4A], 1 for the numbers of a matched anchor, else 0;
// and class labels [B, A] int64, class + 1, or 0 for background.
inline std::tuple<Tensor, Tensor, Tensor> multibox_target(
    const Tensor& anchors, const Tensor& labels, const std::optional<Tensor>& cls_preds = std::nullopt,
    const MultiboxTargetOptions& options = {}) {
  return detail::call<Tensor, Tensor, Tensor>(
      "multibox_target", anchors, labels, cls_preds, options.iou_threshold,
      detail::variances(options.variances, options.coding), options.negative_mining_ratio.value_or(-1.0),
      options.negative_mining_threshold, options.min_negatives, options.ignore_label,
      detail::number(options.semantics), detail::number(options.coding), options.ignore_boxes,
      options.ignore_threshold);
}

struct HardNegativeMiningOptions {
  double ratio = 3.0;         // negatives for each positive
  int64_t min_negatives = 0;  // the least number of negatives in each image
};

// Selects the positives and the hardest negatives of each image. losses [B, A]; cls_labels [B, A] int64,
// positive above 0, negative at 0, ignored below. Returns [B, A] bool. Of equal losses the lower anchor comes
// first; NaN counts as the highest.
inline Tensor hard_negative_mining(const Tensor& losses, const Tensor& cls_labels,
                                   const HardNegativeMiningOptions& options = {}) {
  return std::get<0>(
      detail::call<Tensor>("hard_negative_mining", losses, cls_labels, options.ratio, options.min_negatives));
}

// ---- Non-maximum suppression (NMS)

struct NmsOptions {
  Metric metric = Metric::iou;
};

// Greedy NMS of boxes [N, 4] with scores [N]: the indices [K] int64 of the boxes that it keeps, highest score
// first. A box is dropped if its overlap with a kept box of higher score is above iou_threshold, 0 or more;
// from 1 on, none is. A box of a NaN score is dropped. A box without area or with a NaN corner overlaps
// nothing.
inline Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                  const NmsOptions& options = {}) {
  return std::get<0>(detail::call<Tensor>("nms", boxes, scores, detail::threshold(iou_threshold),
                                          detail::number(options.metric)));
}

// `nms` within each class: idxs [N] int64 is the class of each box, or its level or image.
inline Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold,
                          const NmsOptions& options = {}) {
  return std::get<0>(detail::call<Tensor>("batched_nms", boxes, scores, idxs,
                                          detail::threshold(iou_threshold), detail::number(options.metric)));
}

// `nms` of boxes [B, N, 4] with scores [B, N], or of [N, 4] with [N], in shapes that do not depend on the
// values: indices [B, N] int64, padded with -1, and counts [B] int64; for one image [N] and [].
inline std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                                             const NmsOptions& options = {}) {
  const double threshold = detail::threshold(iou_threshold);
  const int64_t metric = detail::number(options.metric);
  if (boxes.dim() != 2 || scores.dim() != 1)
    return detail::call<Tensor, Tensor>("nms_padded", boxes, scores, threshold, metric);
  const auto [indices, counts] =
      detail::call<Tensor, Tensor>("nms_padded", torch::stable::unsqueeze(boxes, 0),
                                   torch::stable::unsqueeze(scores, 0), threshold, metric);
  return {torch::stable::select(indices, 0, 0), torch::stable::select(counts, 0, 0)};
}

struct NmsGroupsOptions {
  std::optional<Tensor> idxs = std::nullopt;  // [..., N] int64, the class of each box; none: all of one class
  Metric metric = Metric::iou;
};

// For each of the boxes [..., N, 4] with scores [..., N] the kept box that suppressed it: [..., N] int64, its
// own index if it is kept, -1 for a NaN score.
inline Tensor nms_groups(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                         const NmsGroupsOptions& options = {}) {
  return std::get<0>(detail::call<Tensor>("nms_groups", boxes, scores, options.idxs,
                                          detail::threshold(iou_threshold), detail::number(options.metric)));
}

// ---- Detections

struct MulticlassNmsOptions {
  double score_threshold = 0.05;  // a pair of a box and a class with a score above it is a candidate
  double iou_threshold = 0.5;
  int64_t topk = 400;            // candidates of each class that enter NMS; -1: all
  int64_t max_detections = 100;  // K
  bool class_agnostic = false;   // NMS compares candidates of all classes
  Metric metric = Metric::iou;
  bool best_class_only = false;  // each box only with the class of its highest score
  std::optional<std::vector<int64_t>> level_counts = std::nullopt;  // boxes of each pyramid level
  std::optional<int64_t> topk_per_level = std::nullopt;  // candidates that each level keeps before topk
};

// NMS within each class, for a batch: boxes [B, N, 4], scores [B, N, C] without background. Returns K rows
// for each image; equal scores are ordered by class, then by box.
inline Detections multiclass_nms(const Tensor& boxes, const Tensor& scores,
                                 const MulticlassNmsOptions& options = {}) {
  const auto [counts, topk] = detail::levels("multiclass_nms", options.level_counts, options.topk_per_level);
  return detail::detections(detail::call<Tensor, Tensor, Tensor, Tensor, Tensor>(
      "multiclass_nms", boxes, scores, options.score_threshold, detail::threshold(options.iou_threshold),
      options.topk, options.max_detections, options.class_agnostic, detail::number(options.metric),
      options.best_class_only, counts, topk));
}

struct DetectOptions {
  Activation activation = Activation::softmax;
  double score_threshold = 0.01;  // 0..1; a candidate has a score above it
  double iou_threshold = 0.45;
  int64_t topk = 400;                                 // candidates of each class that enter NMS; -1: all
  int64_t max_detections = 200;                       // K
  std::optional<Variances> variances = std::nullopt;  // as in `encode_boxes`
  Clip clip = true;                                   // of the boxes before NMS
  bool class_agnostic = false;                        // NMS compares candidates of all classes
  Metric metric = Metric::iou;
  Coding coding = Coding::center;
  std::optional<double> max_log_size = std::nullopt;  // as in `decode_boxes`
  bool best_class_only = false;                       // each anchor only with the class of its highest score
  std::optional<std::vector<int64_t>> level_counts = std::nullopt;  // anchors of each pyramid level
  std::optional<int64_t> topk_per_level = std::nullopt;  // candidates that each level keeps before topk
};

// Post-processing of a detector in one call for a batch: activation, decoding and NMS.
//
// cls_scores [B, A, C + 1] logits, background first, for softmax, otherwise [B, A, C]; offset_preds [B, A, 4]
// or [B, 4A], encoded as by `encode_boxes`; anchors [1, A, 4] or [A, 4].
// Returns K rows for each image; equal scores are ordered by class, then by anchor. A NaN score is no
// candidate.
inline Detections detect(const Tensor& cls_scores, const Tensor& offset_preds, const Tensor& anchors,
                         const DetectOptions& options = {}) {
  const auto [counts, topk] = detail::levels("detect", options.level_counts, options.topk_per_level);
  return detail::detections(detail::call<Tensor, Tensor, Tensor, Tensor, Tensor>(
      "detect", cls_scores, offset_preds, anchors, detail::number(options.activation),
      options.score_threshold, detail::threshold(options.iou_threshold), options.topk, options.max_detections,
      detail::variances(options.variances, options.coding), options.clip.size(), options.class_agnostic,
      detail::number(options.metric), detail::number(options.coding),
      detail::max_log_size(options.max_log_size), options.best_class_only, counts, topk));
}

struct MultiboxDetectionOptions {
  Variances variances = {0.1, 0.1, 0.2, 0.2};
  std::optional<bool> clip = std::nullopt;            // the boxes to 0..1; none: only with mxnet
  std::optional<bool> class_agnostic = std::nullopt;  // none: only with d2l
  int64_t topk = -1;                                  // boxes of each image that enter NMS; -1: all
  Semantics semantics = Semantics::d2l;               // or mxnet; for torchvision's rules use `detect`
};

// The book's detections: a row for each anchor, which takes its best class.
//
// cls_probs [B, C + 1, A] probabilities, background first; offset_preds [B, 4A]; anchors [1, A, 4] or [A, 4].
// Returns [B, A, 6] rows (class, score, x1, y1, x2, y2). The detections are the rows of a class >= 0: first
// the kept boxes, highest score first, then the others. csrc/detection/multibox_detection.h has the rules.
inline Tensor multibox_detection(const Tensor& cls_probs, const Tensor& offset_preds, const Tensor& anchors,
                                 double nms_threshold = 0.5, double pos_threshold = 0.009999999,
                                 const MultiboxDetectionOptions& options = {}) {
  if (options.semantics == Semantics::torchvision)
    throw std::runtime_error("multibox_detection: semantics must be d2l or mxnet, got torchvision");
  const bool mxnet = options.semantics == Semantics::mxnet;
  return std::get<0>(detail::call<Tensor>(
      "multibox_detection", cls_probs, offset_preds, anchors, nms_threshold, pos_threshold,
      detail::variances(options.variances), options.clip.value_or(mxnet),
      options.class_agnostic.value_or(!mxnet), options.topk, detail::number(options.semantics)));
}

}  // namespace ssd_ops

#pragma GCC visibility pop
