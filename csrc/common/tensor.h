// What every op needs of torch: the stable ABI, checks with one form of message, and typed reading.
//
// A check fails with "op: argument must be X, got Y". It throws std::runtime_error itself, because the
// macros of torch put the source path of whoever built the library in front of the message.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/box.h"

namespace ssd_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename Sizes>
std::string sizes_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* between = "";
  for (const int64_t size : sizes) {
    text << between << size;
    between = ", ";
  }
  return "[" + text.str() + "]";
}

inline std::string shape_text(const Tensor& t) {
  return sizes_text(t.sizes());
}

inline std::string dtype_text(const Tensor& t) {
  return torch::headeronly::toString(t.scalar_type());
}

// `condition` is about the shape, which `expected` describes, such as "[B, G, 5]".
inline void check_shape(bool condition, const char* op, const char* argument, const char* expected,
                        const Tensor& t) {
  if (!condition) fail(op, argument, " must be ", expected, ", got ", shape_text(t));
}

inline void check_floating(const char* op, const char* argument, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::Half &&
      type != ScalarType::BFloat16)
    fail(op, argument, " must be float16, bfloat16, float32 or float64, got ", dtype_text(t));
}

inline void check_integer(const char* op, const char* argument, const Tensor& t) {
  if (t.scalar_type() != ScalarType::Long) fail(op, argument, " must be int64, got ", dtype_text(t));
}

inline void check_same_device(const char* op, const char* argument, const Tensor& t,
                              const char* other_argument, const Tensor& other) {
  if (t.is_cuda() != other.is_cuda() || t.is_cpu() != other.is_cpu() ||
      t.get_device_index() != other.get_device_index())
    fail(op, argument, " must be on the device of ", other_argument, ", got another");
}

// The comparisons are written so that NaN fails them.
inline void check_fraction(const char* op, const char* argument, double value) {
  if (!(value >= 0 && value <= 1)) fail(op, argument, " must be in 0..1, got ", value);
}

inline void check_positive(const char* op, const char* argument, double value) {
  if (!(value > 0 && std::isfinite(value))) fail(op, argument, " must be positive and finite, got ", value);
}

inline void check_not_negative(const char* op, const char* argument, double value) {
  if (!(value >= 0 && std::isfinite(value))) fail(op, argument, " must be 0 or more and finite, got ", value);
}

inline void check_not_negative(const char* op, const char* argument, int64_t value) {
  if (value < 0) fail(op, argument, " must be 0 or more, got ", value);
}

// Whether a number of a schema stands for a value of an enum, of which `last` is the last.
template <typename Enum>
bool is_value_of(int64_t number, Enum last) {
  return number >= 0 && number <= static_cast<int64_t>(last);
}

inline void check_metric(const char* op, int64_t metric) {
  if (!is_value_of(metric, Metric::kIos)) fail(op, "metric must be 0 (iou) or 1 (ios), got ", metric);
}

// The number of highest scores that go on to NMS.
inline void check_topk(const char* op, int64_t topk) {
  if (topk < 1 && topk != -1) fail(op, "topk must be 1 or more, or -1 for all, got ", topk);
}

inline void check_variances(const char* op, const std::vector<double>& variances) {
  if (variances.size() != 4) fail(op, "variances must be 4 numbers, got ", variances.size());
  for (const double v : variances) check_positive(op, "variances", v);
}

inline void check_coding(const char* op, int64_t coding) {
  if (!is_value_of(coding, Coding::kDistance))
    fail(op, "coding must be 0 (center), 1 (linear) or 2 (distance), got ", coding);
}

// The arguments that decode_boxes and detect share.
inline void check_decoding(const char* op, const std::vector<double>& variances,
                           const std::vector<double>& clip,  // height and width, or zeros
                           int64_t coding, double max_log_size) {
  check_variances(op, variances);
  if (clip.size() != 2) fail(op, "clip must be 2 numbers, got ", clip.size());
  if (clip[0] != 0 || clip[1] != 0)
    for (const double limit : clip) check_positive(op, "clip", limit);
  check_coding(op, coding);
  if (max_log_size == -1) return;
  if (!(max_log_size > 0)) fail(op, "max_log_size must be positive, or -1 for no bound, got ", max_log_size);
  if (coding != static_cast<int64_t>(Coding::kCenter))
    fail(op, "max_log_size must be -1 with a coding other than 0 (center), got ", max_log_size);
}

inline void check_anchors(const char* op,
                          const Tensor& anchors) {  // [A, 4] or [1, A, 4]
  check_shape((anchors.dim() == 2 || (anchors.dim() == 3 && anchors.size(0) == 1)) &&
                  anchors.size(anchors.dim() - 1) == 4,
              op, "anchors", "[A, 4] or [1, A, 4]", anchors);
  check_floating(op, "anchors", anchors);
}

// As many anchors as another argument, `like`, has.
inline void check_anchor_count(const char* op, const Tensor& anchors, int64_t count, const char* like) {
  if (anchors.numel() != 4 * count)
    fail(op, "anchors must be [", count, ", 4], as many as ", like, " has, got ", shape_text(anchors));
}

template <typename T>
Variances<T> to_variances(const std::vector<double>& v) {
  return {static_cast<T>(v[0]), static_cast<T>(v[1]), static_cast<T>(v[2]), static_cast<T>(v[3])};
}

template <typename T>
Encoding<T> to_encoding(const std::vector<double>& variances, int64_t coding, double eps) {
  return {static_cast<Coding>(coding), to_variances<T>(variances), static_cast<T>(eps)};
}

template <typename T>
Decoding<T> to_decoding(const std::vector<double>& variances,
                        const std::vector<double>& clip,  // height and width, or zeros
                        int64_t coding = 0, double max_log_size = -1) {
  Decoding<T> rules{static_cast<Coding>(coding), to_variances<T>(variances)};
  if (max_log_size != -1) rules.max_log_size = static_cast<T>(max_log_size);
  rules.height = static_cast<T>(clip[0]);
  rules.width = static_cast<T>(clip[1]);
  rules.clips = clip[0] > 0;
  return rules;
}

// The tensor itself where it is contiguous: torch::stable::contiguous looks its op up by name.
inline Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  try {
    return torch::stable::contiguous(t);
  } catch (const std::exception&) {  // torch's message holds the path and line of a header
    fail("ssd_ops", "a contiguous copy of an argument must fit in memory, got a shape of ", shape_text(t),
         " that does not");
  }
}

inline bool is_double(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double;
}
inline bool is_double(const std::optional<Tensor>& t) {
  return t && is_double(*t);
}
inline bool is_double(const std::vector<Tensor>& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return is_double(t); });
}

// body(T()) for the type T of the arithmetic: double if any tensor is float64, float otherwise.
template <typename Body, typename... Tensors>
auto dispatch_real(const Body& body, const Tensors&... tensors) {
  if ((is_double(tensors) || ...)) return body(double());
  return body(float());
}

// body(T(), S()): a type for the boxes and one for the scores. NMS sorts scores in their own precision, since
// float64 boxes do not make float32 scores any finer.
template <typename Body>
auto dispatch_boxes_and_scores(const Body& body, const Tensor& boxes, const Tensor& scores) {
  return dispatch_real(
      [&](auto box) { return dispatch_real([&](auto score) { return body(box, score); }, scores); }, boxes);
}

template <typename T>
constexpr ScalarType kScalarType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

// A tensor on the device of `like`, not yet written. torch::stable::new_empty would look its op up by name,
// which takes a microsecond: a tenth of a small call.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  bool fits = true;
  for (size_t i = shape.size(); i-- > 0;) {
    const int64_t size = std::max<int64_t>(shape[i], 1);
    strides[i] = stride;
    fits = fits && stride <= std::numeric_limits<int64_t>::max() / size;
    if (fits) stride *= size;
  }
  const auto number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  if (!fits || aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                        number, device_type, like.get_device_index(), &handle) != 0)
    fail("ssd_ops", "results must fit in memory, got a shape of ", sizes_text(shape), " that does not");
  return Tensor(handle);
}

// A tensor of T on the device of `like`.
template <typename T>
Tensor new_real(const Tensor& like, const std::vector<int64_t>& shape) {
  return new_tensor(like, shape, kScalarType<T>);
}

template <typename T>
Tensor new_real_like(const Tensor& t) {
  return new_real<T>(t, {t.sizes().begin(), t.sizes().end()});
}

inline Tensor new_integers(const Tensor& like, const std::vector<int64_t>& shape) {
  return new_tensor(like, shape, ScalarType::Long);
}

template <typename T>
T* data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// A contiguous floating tensor read as T. Where the dtype is T already, the rows are read in place;
// otherwise `count` elements are converted into the caller's buffer, so no copy of the tensor is made.
template <typename T>
class Reader {
 public:
  explicit Reader(const Tensor& t)
      : tensor_(as_contiguous(t)), data_(tensor_.const_data_ptr()), type_(t.scalar_type()) {}

  const T* read(int64_t first, int64_t count, std::vector<T>& buffer) const {
    if (type_ == kScalarType<T>) return static_cast<const T*>(data_) + first;
    if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
    switch (type_) {
      case ScalarType::Float:
        convert<float>(first, count, buffer.data());
        break;
      case ScalarType::Double:
        convert<double>(first, count, buffer.data());
        break;
      case ScalarType::Half:
        convert<torch::headeronly::Half>(first, count, buffer.data());
        break;
      default:
        convert<torch::headeronly::BFloat16>(first, count, buffer.data());
        break;
    }
    return buffer.data();
  }

 private:
  template <typename From>
  void convert(int64_t first, int64_t count, T* out) const {
    const From* from = static_cast<const From*>(data_) + first;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(from[i]);
  }

  Tensor tensor_;  // keeps the memory alive
  const void* data_;
  ScalarType type_;
};

}  // namespace ssd_ops
