// The core of multiclass_nms and detect on the CPU: from the scores of one image to its detections.
//
// Candidates are looked at from the best on, and only until max_detections are kept: later ones change
// nothing, so most are never sorted, decoded or compared. They come in portions, each a heap: first those
// over a score that a sample puts near the top, then more and more of the rest. In that order the candidates
// of one class are in order too, so it is enough to count them to leave topk of a class.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "common/box_columns.h"
#include "common/simd.h"
#include "detection/detections.h"
#include "nms/grouped.h"

namespace ssd_ops {

constexpr int64_t kTile = 64;  // boxes whose scores are laid out class by class at a time

// Appends to `found` and `at` those of kTile scores that are over the threshold, and their numbers, from
// `first` on; returns how many. There must be room for all.
template <typename T>
SSD_HOST_DEVICE int64_t append_over_lanes(const T* __restrict scores,  // [kTile]
                                          T threshold, int64_t first,
                                          T* __restrict found,       // [kTile]
                                          int64_t* __restrict at) {  // [kTile]
  int64_t appended = 0;
  for (int64_t start = 0; start < kTile; start += kLanes) {
    typename FloatTraits<T>::Signed any = 0;
    for (int64_t i = start; i < start + kLanes; ++i) any |= scores[i] > threshold ? 1 : 0;
    if (!any) continue;
    // No branch: the next score overwrites one that is not over the threshold.
    for (int64_t i = start; i < start + kLanes; ++i) {
      found[appended] = scores[i];
      at[appended] = first + i;
      appended += scores[i] > threshold ? 1 : 0;
    }
  }
  return appended;
}

SSD_SIMD(int64_t, append_over,
         (const float* scores, float threshold, int64_t first, float* found, int64_t* at),
         (scores, threshold, first, found, at))
SSD_SIMD(int64_t, append_over,
         (const double* scores, double threshold, int64_t first, double* found, int64_t* at),
         (scores, threshold, first, found, at))

// The best score of each of kTile boxes, and its class, the first on ties. A NaN is never the best.
template <typename T>
SSD_HOST_DEVICE void best_of_tile_lanes(const T* __restrict tile,  // [num_classes, kTile]
                                        int64_t num_classes,
                                        T* __restrict best,                                     // [kTile]
                                        typename FloatTraits<T>::Signed* __restrict classes) {  // [kTile]
  for (int64_t i = 0; i < kTile; ++i) {
    best[i] = -std::numeric_limits<T>::infinity();
    classes[i] = 0;
  }
  for (int64_t c = 0; c < num_classes; ++c)
    for (int64_t i = 0; i < kTile; ++i) {
      const bool better = tile[c * kTile + i] > best[i];
      best[i] = better ? tile[c * kTile + i] : best[i];
      classes[i] = better ? static_cast<typename FloatTraits<T>::Signed>(c) : classes[i];
    }
}

SSD_SIMD(void, best_of_tile, (const float* tile, int64_t num_classes, float* best, int32_t* classes),
         (tile, num_classes, best, classes))
SSD_SIMD(void, best_of_tile, (const double* tile, int64_t num_classes, double* best, int64_t* classes),
         (tile, num_classes, best, classes))

// Boxes with their class, of which the last lanes may be empty.
template <typename T>
struct KeptRows {
  const T *x1, *y1, *x2, *y2, *areas;
  const typename FloatTraits<T>::Signed* classes;
  int64_t count;  // a multiple of kLanes
};

template <Metric kMetric, typename T>
SSD_HOST_DEVICE bool any_row_of_class_over(const KeptRows<T>& kept, Box<T> box,
                                           typename FloatTraits<T>::Signed category, T threshold) {
  using Flag = typename FloatTraits<T>::Signed;
  const T* __restrict x1 = kept.x1;
  const T* __restrict y1 = kept.y1;
  const T* __restrict x2 = kept.x2;
  const T* __restrict y2 = kept.y2;
  const T* __restrict areas = kept.areas;
  const Flag* __restrict classes = kept.classes;
  const T box_area = area(box);
  Flag over = 0;
  for (int64_t i = 0; i < kept.count; ++i) {
    const Box<T> other{x1[i], y1[i], x2[i], y2[i]};
    const Flag enough = overlap(kMetric, other, areas[i], box, box_area) > threshold ? 1 : 0;
    over |= classes[i] == category ? enough : Flag(0);
  }
  return over != 0;
}

template <typename T>
SSD_HOST_DEVICE bool any_of_class_over_lanes(const KeptRows<T>& kept, Box<T> box,
                                             typename FloatTraits<T>::Signed category,
                                             OverlapLimit<T> limit) {
  if (limit.metric == Metric::kIos)
    return any_row_of_class_over<Metric::kIos>(kept, box, category, limit.threshold);
  return any_row_of_class_over<Metric::kIou>(kept, box, category, limit.threshold);
}

SSD_SIMD(bool, any_of_class_over,
         (const KeptRows<float>& kept, Box<float> box, int32_t category, OverlapLimit<float> limit),
         (kept, box, category, limit))
SSD_SIMD(bool, any_of_class_over,
         (const KeptRows<double>& kept, Box<double> box, int64_t category, OverlapLimit<double> limit),
         (kept, box, category, limit))

template <typename T>
class Selection {
 public:
  Selection(const SelectionRules<T>& rules, int64_t num_boxes, int64_t num_classes)
      : rules_(rules), num_boxes_(num_boxes), num_classes_(num_classes) {
    if (rules_.candidates.topk_per_level == -1) rules_.candidates.level_counts = {num_boxes};
  }

  // The scores of all boxes of an image. read(first, count) gives those of the boxes from `first` on as
  // [C, kTile]; past `count`, at most kTile, they are NaN.
  template <typename Read>
  void add_all(const Read& read) {
    int64_t first = 0;
    for (const int64_t level_count : rules_.candidates.level_counts) {
      least_ = rules_.score_threshold;
      level_begin_ = size_;
      for (const int64_t end = first + level_count; first < end;) {
        const int64_t count = std::min(kTile, end - first);
        add(first, read(first, count));
        first += count;
        if (size_ - level_begin_ > kLevelRoom && (size_ - level_begin_) / 2 > most_of_level()) cut_level();
      }
      cut_level();
    }
  }

  // The detections among what was added, and the selection is empty again.
  template <typename BoxAt>
  void finish(const BoxAt& box_at, DetectionRows<T> rows) {
    seen_.assign(static_cast<size_t>(num_classes_), 0);
    int64_t count = 0;
    // Kept boxes are searched one by one; from some number on the grid of GreedyNms is quicker.
    if (rules_.max_detections <= kMaxSearched)
      count = keep_best(box_at, rows);
    else
      count = keep_all(box_at, rows);
    *rows.count = count;
    for (int64_t i = count; i < rules_.max_detections; ++i) {
      store_box<T>({0, 0, 0, 0}, rows.boxes + 4 * i);
      rows.scores[i] = 0;
      rows.labels[i] = rows.indices[i] = -1;
    }
    size_ = 0;
  }

 private:
  static constexpr size_t kLevelRoom = 4096;        // candidates that are not worth a cut
  using ClassId = typename FloatTraits<T>::Signed;  // as wide as T, for the lanes
  static constexpr int64_t kMaxSearched = 1024;
  static constexpr size_t kPortion = 512;
  static constexpr size_t kSample = 512;

  struct Candidate {
    T score;
    int64_t flat;  // class * num_boxes + box
  };
  static bool goes_first(const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.flat < b.flat);
  }
  static bool goes_last(const Candidate& a, const Candidate& b) { return goes_first(b, a); }

  void add(int64_t first,
           const T* tile) {  // [C, kTile]
    if (rules_.candidates.best_class_only) {
      ClassId classes[kTile];
      T best[kTile];
      best_of_tile(tile, num_classes_, best, classes);
      const size_t begin = size_;
      append(first, best);
      for (size_t i = begin; i < size_; ++i) flat_[i] += classes[flat_[i] - first] * num_boxes_;
    } else {
      for (int64_t c = 0; c < num_classes_; ++c) append(c * num_boxes_ + first, tile + c * kTile);
    }
  }

  // The candidates among the scores numbered from `flat` on.
  void append(int64_t flat,
              const T* scores) {  // [kTile]
    if (found_.size() < size_ + static_cast<size_t>(kTile)) {
      const size_t room = 2 * found_.size() + static_cast<size_t>(kTile);
      found_.resize(room);
      flat_.resize(room);
    }
    size_ += static_cast<size_t>(append_over(scores, least_, flat, &found_[size_], &flat_[size_]));
  }

  size_t most_of_level() const {
    const int64_t most = rules_.candidates.topk_per_level;
    return most == -1 ? std::numeric_limits<size_t>::max() : static_cast<size_t>(most);
  }

  // Leaves the best of the level so far, and looks only for those that may be better: a later candidate with
  // the same score as the last one may have a lower class.
  void cut_level() {
    const size_t most = most_of_level();
    if (size_ - level_begin_ <= most) return;
    heap_.clear();
    for (size_t i = level_begin_; i < size_; ++i) heap_.push_back({found_[i], flat_[i]});
    const auto last = heap_.begin() + static_cast<int64_t>(most - 1);
    std::nth_element(heap_.begin(), last, heap_.end(), goes_first);
    least_ = std::nextafter(last->score, -std::numeric_limits<T>::infinity());
    size_ = level_begin_;
    for (auto c = heap_.begin(); c <= last; ++c) {
      found_[size_] = c->score;
      flat_[size_++] = c->flat;
    }
  }

  // Counts a candidate of its class; false where the class has had its topk.
  bool enters(const Candidate& c) {
    return rules_.topk == -1 || seen_[static_cast<size_t>(c.flat / num_boxes_)]++ < rules_.topk;
  }

  void write(const Candidate& c, Box<T> box, int64_t at, DetectionRows<T> rows) const {
    store_box(box, rows.boxes + 4 * at);
    rows.scores[at] = c.score;
    rows.labels[at] = c.flat / num_boxes_;
    rows.indices[at] = c.flat % num_boxes_;
  }

  template <typename BoxAt>
  int64_t keep_best(const BoxAt& box_at, DetectionRows<T> rows) {
    const size_t room = static_cast<size_t>((rules_.max_detections + kLanes - 1) / kLanes * kLanes);
    kept_.assign(room);
    classes_.assign(room, -1);
    int64_t count = 0;
    for (size_t portion = kPortion; size_ > 0 && count < rules_.max_detections; portion *= 4) {
      take_best(portion);
      while (!heap_.empty() && count < rules_.max_detections) {
        std::pop_heap(heap_.begin(), heap_.end(), goes_last);
        const Candidate best = heap_.back();
        heap_.pop_back();
        if (!enters(best)) continue;
        const Box<T> box = box_at(best.flat % num_boxes_);
        const ClassId category = rules_.class_agnostic ? 0 : static_cast<ClassId>(best.flat / num_boxes_);
        const KeptRows<T> kept{kept_.x1.data(),
                               kept_.y1.data(),
                               kept_.x2.data(),
                               kept_.y2.data(),
                               kept_.areas.data(),
                               classes_.data(),
                               (count + kLanes - 1) / kLanes * kLanes};
        if (any_of_class_over(kept, box, category, rules_.limit)) continue;
        kept_.set(static_cast<size_t>(count), box);
        classes_[static_cast<size_t>(count)] = category;
        write(best, box, count++, rows);
      }
    }
    return count;
  }

  // Moves about `wanted` of the best candidates to the heap: all from some score on.
  void take_best(size_t wanted) {
    T least = rules_.score_threshold;
    if (size_ > 2 * wanted) {
      sample_.clear();
      for (size_t i = 0; i < kSample; ++i) sample_.push_back(found_[i * (size_ / kSample)]);
      const auto at = sample_.begin() + static_cast<int64_t>(kSample * wanted / size_);
      std::nth_element(sample_.begin(), at, sample_.end(), std::greater<T>());
      least = *at;
    }
    heap_.clear();
    size_t left = 0;
    for (size_t i = 0; i < size_; ++i) {
      if (found_[i] >= least) {
        heap_.push_back({found_[i], flat_[i]});
      } else {
        found_[left] = found_[i];
        flat_[left++] = flat_[i];
      }
    }
    size_ = left;
    std::make_heap(heap_.begin(), heap_.end(), goes_last);
  }

  template <typename BoxAt>
  int64_t keep_all(const BoxAt& box_at, DetectionRows<T> rows) {
    std::vector<Candidate> candidates;
    for (size_t i = 0; i < size_; ++i) candidates.push_back({found_[i], flat_[i]});
    std::sort(candidates.begin(), candidates.end(), goes_first);
    candidates.erase(
        std::remove_if(candidates.begin(), candidates.end(), [&](const Candidate& c) { return !enters(c); }),
        candidates.end());
    std::vector<Box<T>> boxes;
    std::vector<int64_t> order, kept;
    for (const Candidate& c : candidates) {
      order.push_back(static_cast<int64_t>(order.size()));
      boxes.push_back(box_at(c.flat % num_boxes_));
    }
    const auto group_at = [&](int64_t i) {
      return rules_.class_agnostic ? 0 : candidates[i].flat / num_boxes_;
    };
    GroupedNms<T>().run(order, [&](int64_t i) { return boxes[i]; }, group_at, rules_.limit, kept);
    const int64_t count = std::min(rules_.max_detections, static_cast<int64_t>(kept.size()));
    for (int64_t i = 0; i < count; ++i) write(candidates[kept[i]], boxes[kept[i]], i, rows);
    return count;
  }

  SelectionRules<T> rules_;
  int64_t num_boxes_, num_classes_;
  size_t size_ = 0;  // of the candidates
  size_t level_begin_ = 0;
  T least_ = 0;  // candidates are over this
  std::vector<T> found_, sample_;
  std::vector<int64_t> flat_, seen_;
  std::vector<Candidate> heap_;
  BoxColumns<T> kept_;
  std::vector<ClassId> classes_;  // of kept_
};

// The rows by column; what is left of each row of the tile is NaN. No SSD_SIMD: wide vectors would be stored
// element by element.
template <typename T>
void to_tile(const T* __restrict rows,  // [count, width]
             int64_t count, int64_t width,
             T* __restrict tile) {  // [width, kTile]
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < width; ++c) tile[c * kTile + i] = rows[i * width + c];
  for (int64_t c = 0; c < width; ++c)
    std::fill(tile + c * kTile + count, tile + (c + 1) * kTile, std::numeric_limits<T>::quiet_NaN());
}

}  // namespace ssd_ops
