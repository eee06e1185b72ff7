// What encode_boxes and decode_boxes share: one row of four numbers in, one out, anchors repeated.
#pragma once

#include "common/tensor.h"

namespace ssd_ops {

inline void check_transform(const char* op,
                            const char* argument,     // the name of `rows`: boxes or offsets
                            const Tensor& rows,       // [..., A, 4]
                            const Tensor& anchors) {  // [A, 4] or [1, A, 4], or the shape of `rows`
  check_shape(rows.dim() >= 1 && rows.size(rows.dim() - 1) == 4, op, argument, "[..., 4]", rows);
  check_shape(anchors.dim() >= 1 && anchors.size(anchors.dim() - 1) == 4, op, "anchors", "[..., 4]", anchors);
  // Leading dimensions of 1 do not count, the others must be the last ones of `rows`.
  int64_t skip = 0;
  while (skip < anchors.dim() - 1 && anchors.size(skip) == 1) ++skip;
  bool fits = anchors.dim() - skip <= rows.dim();
  for (int64_t i = 1; fits && i <= anchors.dim() - skip; ++i)
    fits = anchors.size(anchors.dim() - i) == rows.size(rows.dim() - i);
  if (!fits)
    fail(op, "anchors must be of the last dimensions of ", argument, ", ", shape_text(rows), ", got ",
         shape_text(anchors));
  check_floating(op, argument, rows);
  check_floating(op, "anchors", anchors);
  check_same_device(op, "anchors", anchors, argument, rows);
}

// out row = convert(row, anchor), a block of rows at a time; convert(rows, anchors, count, out).
template <typename T, typename Convert>
Tensor transform_cpu(const Tensor& rows,     // [..., A, 4]
                     const Tensor& anchors,  // [A, 4]
                     const Convert& convert) {
  constexpr int64_t kGrain = 2048;  // rows per task
  Tensor out = new_real_like<T>(rows);
  const int64_t total = rows.numel() / 4, repeat = anchors.numel() / 4;
  if (total == 0) return out;
  const Reader<T> read_rows(rows), read_anchors(anchors);
  T* results = data<T>(out);
  torch::stable::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> row_buffer, anchor_buffer;
    for (int64_t i = begin; i < end;) {
      const int64_t first = i % repeat, count = std::min({end - i, repeat - first, kGrain});
      convert(read_rows.read(4 * i, 4 * count, row_buffer),
              read_anchors.read(4 * first, 4 * count, anchor_buffer), count, results + 4 * i);
      i += count;
    }
  });
  return out;
}

}  // namespace ssd_ops
