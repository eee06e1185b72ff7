// The matching of one image's ground truths to the anchors, on the CPU, in memory O(anchors + gts).
//
// Anchors are laid out by coordinate in blocks, with a bounding box for each block, so that a ground
// truth meets only the blocks it overlaps. One pass finds, for every anchor, its best ground truth
// and, for every ground truth, its best anchor; no anchors x ground truths matrix is ever made.
//
// The forced match is the global greedy one: among all free pairs the one with the highest IoU, then
// the lowest anchor, then the lowest ground truth, until one side is used up. It is found lazily: each
// ground truth keeps a short list of its best anchors in that order; the best head of all lists is
// taken, and a head that was taken in the meantime is dropped. Dropping only lowers a list's head, so
// the head that is best and free is the maximum over all free pairs. Of more than kListLength ground truths,
// those with one box want the same anchors, and share a list. A list drops an anchor at most once: with D
// distinct boxes among the G there are at most G + D * min(G, A) steps, however often a box is repeated.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>
#include <tuple>

#include "common/box_columns.h"
#include "common/simd.h"
#include "common/tensor.h"
#include "target/ignored.h"
#include "target/rules.h"

namespace ssd_ops {

constexpr int64_t kBlock = 256;     // anchors per block: small enough to cull well, large enough to stream
constexpr size_t kListLength = 64;  // anchors remembered per rescan of a ground truth

template <typename T>
struct AnchorBlocks {
  int64_t count;                // A
  int64_t blocks;               // ceil(A / kBlock)
  BoxColumns<T> boxes;          // padded to whole blocks; nowhere where an anchor is not usable
  std::vector<Box<T>> bounds;   // of each block; nowhere where none of its anchors is usable
  std::vector<uint8_t> usable;  // has extent: offsets cannot be encoded against an anchor without
  int64_t num_usable;

  Box<T> box(int64_t i) const { return boxes.at(static_cast<size_t>(i)); }
};

template <typename T>
AnchorBlocks<T> lay_out_anchors(const Tensor& anchors) {  // [A, 4]
  AnchorBlocks<T> a;
  a.count = anchors.numel() / 4;
  a.blocks = (a.count + kBlock - 1) / kBlock;
  a.num_usable = 0;
  const size_t padded = static_cast<size_t>(a.blocks * kBlock);
  a.boxes.assign(padded);
  a.usable.assign(padded, 0);
  a.bounds.assign(static_cast<size_t>(a.blocks), nowhere<T>());
  const Reader<T> reader(anchors);
  std::vector<T> buffer;
  for (int64_t block = 0; block < a.blocks; ++block) {
    const int64_t first = block * kBlock, count = std::min(kBlock, a.count - first);
    const T* rows = reader.read(4 * first, 4 * count, buffer);
    Box<T>& bounds = a.bounds[block];
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> box = load_box(rows + 4 * i);
      if (!has_extent(box)) continue;
      bounds = {min_of(bounds.x1, box.x1), min_of(bounds.y1, box.y1), max_of(bounds.x2, box.x2),
                max_of(bounds.y2, box.y2)};
      a.boxes.set(static_cast<size_t>(first + i), box);
      a.usable[first + i] = 1;
      ++a.num_usable;
    }
  }
  return a;
}

// Of a ground truth; as wide as T, to be selected along with it.
template <typename T>
using Index = typename FloatTraits<T>::Signed;

// IoU of `gt` with a block of anchors; where it beats an anchor's best so far, it becomes the best.
// Returns the greatest IoU of the block. `ious` gets all of them.
template <typename T>
SSD_HOST_DEVICE T match_block_lanes(const T* __restrict x1,  // [kBlock], and so the others
                                    const T* __restrict y1, const T* __restrict x2, const T* __restrict y2,
                                    const T* __restrict areas, Box<T> gt, Index<T> gt_index,
                                    T* __restrict best_iou, Index<T>* __restrict best_gt,
                                    T* __restrict ious) {
  const T gt_area = area(gt);
  // The bits of numbers from 0 on have the order of the numbers, and integers have a vector maximum.
  Index<T> greatest = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    const T value = iou(Box<T>{x1[i], y1[i], x2[i], y2[i]}, areas[i], gt, gt_area);
    ious[i] = value;
    best_gt[i] = value > best_iou[i] ? gt_index : best_gt[i];
    best_iou[i] = max_of(value, best_iou[i]);
    greatest = max_of(bit_cast<Index<T>>(value), greatest);
  }
  return bit_cast<T>(greatest);
}

SSD_SIMD(float, match_block,
         (const float* x1, const float* y1, const float* x2, const float* y2, const float* areas,
          Box<float> gt, int32_t gt_index, float* best_iou, int32_t* best_gt, float* ious),
         (x1, y1, x2, y2, areas, gt, gt_index, best_iou, best_gt, ious))
SSD_SIMD(double, match_block,
         (const double* x1, const double* y1, const double* x2, const double* y2, const double* areas,
          Box<double> gt, int64_t gt_index, double* best_iou, int64_t* best_gt, double* ious),
         (x1, y1, x2, y2, areas, gt, gt_index, best_iou, best_gt, ious))

// -2 for those anchors without a match that `region` covers.
template <typename T>
SSD_HOST_DEVICE void ignore_block_lanes(const T* __restrict x1,  // [count], and so the others
                                        const T* __restrict y1, const T* __restrict x2,
                                        const T* __restrict y2, const T* __restrict areas, int64_t count,
                                        Box<T> region, T share, int32_t* __restrict matched) {
  for (int64_t i = 0; i < count; ++i) {
    const bool covered = lies_in(Box<T>{x1[i], y1[i], x2[i], y2[i]}, areas[i], region, share);
    matched[i] = covered & (matched[i] < 0) ? -2 : matched[i];
  }
}

SSD_SIMD(void, ignore_block,
         (const float* x1, const float* y1, const float* x2, const float* y2, const float* areas,
          int64_t count, Box<float> region, float share, int32_t* matched),
         (x1, y1, x2, y2, areas, count, region, share, matched))
SSD_SIMD(void, ignore_block,
         (const double* x1, const double* y1, const double* x2, const double* y2, const double* areas,
          int64_t count, Box<double> region, double share, int32_t* matched),
         (x1, y1, x2, y2, areas, count, region, share, matched))

template <typename T>
class Matcher {
 public:
  explicit Matcher(const AnchorBlocks<T>& anchors)
      : a_(anchors),
        best_iou_(anchors.usable.size()),
        best_gt_(anchors.usable.size()),
        touched_(anchors.blocks),
        taken_(anchors.usable.size()),
        ious_(kBlock),
        unused_iou_(kBlock),
        unused_gt_(kBlock) {}

  // matched[i] = the ground truth of anchor i, -1 or -2. `gts` holds proper boxes only. Every anchor takes
  // its best ground truth (the first on ties) by the thresholds; then the forced match overwrites.
  void match(const std::vector<Box<T>>& gts, MatchRules<T> rules, std::vector<int32_t>& matched) {
    matched.assign(static_cast<size_t>(a_.count), -1);
    std::fill(best_iou_.begin(), best_iou_.end(), T(0));
    if (gts.empty() || a_.num_usable == 0) return;
    find_best(gts, rules.force == Force::kLowQuality);
    for (int64_t block = 0; block < a_.blocks; ++block) {
      // Where nothing overlaps, every IoU is 0.
      if (!touched_[block] && rules.match_from > 0 && rules.background_below > 0) continue;
      const int64_t end = std::min((block + 1) * kBlock, a_.count);
      for (int64_t i = block * kBlock; i < end; ++i) {
        if (!a_.usable[i]) continue;
        if (best_iou_[i] >= rules.match_from)
          matched[i] = static_cast<int32_t>(best_gt_[i]);
        else if (best_iou_[i] >= rules.background_below)
          matched[i] = -2;
      }
    }
    if (rules.force == Force::kBipartite) force_bipartite(gts, rules.force_above, matched);
    if (rules.force == Force::kArgmax) force_argmax(gts, matched);
    if (rules.force == Force::kLowQuality) force_low_quality(gts, matched);
  }

  // After match: -2 for every anchor without a match that a region of the image covers.
  void ignore(const IgnoredRegions<T>& regions, int64_t image, std::vector<int32_t>& matched) {
    if (!regions.boxes) return;
    const BoxColumns<T>& b = a_.boxes;
    const T* rows = regions.boxes->read(4 * image * regions.num_boxes, 4 * regions.num_boxes, region_rows_);
    for (int64_t k = 0; k < regions.num_boxes; ++k) {
      const Box<T> region = load_box(rows + 4 * k);
      if (!has_extent(region)) continue;
      for (int64_t block = 0; block < a_.blocks; ++block) {
        if (!overlaps(a_.bounds[block], region)) continue;
        const int64_t i = block * kBlock, count = std::min(kBlock, a_.count - i);
        ignore_block(&b.x1[i], &b.y1[i], &b.x2[i], &b.y2[i], &b.areas[i], count, region, regions.threshold,
                     &matched[i]);
      }
    }
  }

  // After match: the highest IoU of anchor i with any ground truth, and the ground truth that has it.
  T best_iou(int64_t i) const { return best_iou_[static_cast<size_t>(i)]; }
  const T* best_ious() const { return best_iou_.data(); }
  int64_t best_gt(int64_t i) const { return best_gt_[static_cast<size_t>(i)]; }

 private:
  struct Candidate {
    T iou;
    int64_t anchor;
    // True where `other` goes first: higher IoU, then lower anchor.
    bool operator<(const Candidate& other) const {
      return iou < other.iou || (iou == other.iou && anchor > other.anchor);
    }
  };

  struct Head {
    Candidate candidate;
    int32_t gt;
    bool operator<(const Head& other) const {
      if (candidate < other.candidate) return true;
      return !(other.candidate < candidate) && gt > other.gt;
    }
  };

  // With `ties`, also every block in which a ground truth reaches its highest IoU.
  void find_best(const std::vector<Box<T>>& gts, bool ties) {
    std::fill(best_gt_.begin(), best_gt_.end(), 0);
    std::fill(touched_.begin(), touched_.end(), 0);
    column_.assign(gts.size(), {T(0), -1});
    if (ties) best_blocks_.assign(gts.size(), {});
    for (int64_t block = 0; block < a_.blocks; ++block) {
      const int64_t first = block * kBlock;
      for (size_t g = 0; g < gts.size(); ++g) {
        if (!overlaps(a_.bounds[block], gts[g])) continue;
        const T best = match(block, gts[g], static_cast<Index<T>>(g), &best_iou_[first], &best_gt_[first]);
        if (ties && best > T(0) && best >= column_[g].iou) {
          if (best > column_[g].iou) best_blocks_[g].clear();
          best_blocks_[g].push_back(block);
        }
        if (best > column_[g].iou)
          column_[g] = {best, first + (std::find(ious_.begin(), ious_.end(), best) - ious_.begin())};
        touched_[block] = 1;
      }
    }
  }

  T match(int64_t block, Box<T> gt, Index<T> index, T* best_iou, Index<T>* best_gt) {
    const int64_t i = block * kBlock;
    const BoxColumns<T>& b = a_.boxes;
    return match_block(&b.x1[i], &b.y1[i], &b.x2[i], &b.y2[i], &b.areas[i], gt, index, best_iou, best_gt,
                       ious_.data());
  }

  void force_argmax(const std::vector<Box<T>>& gts, std::vector<int32_t>& matched) {
    const int64_t first = std::find(a_.usable.begin(), a_.usable.end(), uint8_t(1)) - a_.usable.begin();
    for (size_t g = 0; g < gts.size(); ++g)  // without an overlap every IoU is 0, and the first the best
      matched[column_[g].anchor >= 0 ? column_[g].anchor : first] = static_cast<int32_t>(g);
  }

  void force_low_quality(const std::vector<Box<T>>& gts, std::vector<int32_t>& matched) {
    for (size_t g = 0; g < gts.size(); ++g)
      for (const int64_t block : best_blocks_[g]) {
        match(block, gts[g], 0, unused_iou_.data(), unused_gt_.data());
        for (int64_t i = 0; i < kBlock; ++i)
          if (ious_[i] == column_[g].iou)
            matched[block * kBlock + i] = static_cast<int32_t>(best_gt_[block * kBlock + i]);
      }
  }

  void force_bipartite(const std::vector<Box<T>>& gts, T above, std::vector<int32_t>& matched) {
    std::fill(taken_.begin(), taken_.end(), 0);
    lists_.assign(gts.size(), {});
    const std::vector<int32_t> leaders = queue_equal(gts);
    std::vector<int32_t> without;  // ground truths that overlap no free anchor
    const auto leave_out = [&](int32_t gt) {
      for (; gt >= 0; gt = next_equal_[gt]) without.push_back(gt);
    };
    std::priority_queue<Head> heads;
    for (const int32_t gt : leaders) {
      if (column_[gt].anchor >= 0) {
        heads.push({column_[gt], gt});
      } else {
        leave_out(gt);
      }
    }
    while (!heads.empty()) {
      Head head = heads.top();
      heads.pop();
      if (!taken_[head.candidate.anchor]) {
        if (!(head.candidate.iou > above)) return;  // it is the highest of all that are free
        take(head.candidate.anchor, head.gt, matched);
        const int32_t next = next_equal_[head.gt];
        if (next < 0) continue;
        lists_[next].swap(lists_[head.gt]);
        head.gt = next;
      }
      head.candidate = next_free(gts[head.gt], lists_[head.gt]);
      if (head.candidate.anchor >= 0) {
        heads.push(head);
      } else {
        leave_out(head.gt);
      }
    }
    if (above >= 0) return;
    // What is left has IoU 0 with every free anchor: the lowest ground truth takes the lowest anchor.
    std::sort(without.begin(), without.end());
    int64_t anchor = 0;
    for (const int32_t gt : without) {
      while (anchor < a_.count && (taken_[anchor] || !a_.usable[anchor])) ++anchor;
      if (anchor == a_.count) break;
      take(anchor, gt, matched);
    }
  }

  // Ground truths with one box wait in one queue, in the order of their rows: they want the same anchors, and
  // the lowest row goes first. next_equal_ says who follows. Returns the first of each queue.
  std::vector<int32_t> queue_equal(const std::vector<Box<T>>& gts) {
    const auto corners = [&](int32_t gt) {
      const Box<T>& box = gts[gt];
      return std::tie(box.x1, box.y1, box.x2, box.y2);
    };
    std::vector<int32_t> order(gts.size()), leaders;
    std::iota(order.begin(), order.end(), 0);
    next_equal_.assign(gts.size(), -1);
    if (gts.size() <= kListLength) return order;  // one list lasts for all of so few: sorting does not pay
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return corners(a) < corners(b); });
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0 && corners(order[i - 1]) == corners(order[i]))
        next_equal_[order[i - 1]] = order[i];
      else
        leaders.push_back(order[i]);
    }
    return leaders;
  }

  void take(int64_t anchor, int32_t gt, std::vector<int32_t>& matched) {
    taken_[anchor] = 1;
    matched[anchor] = gt;
  }

  // The best free anchor that overlaps `gt`, or -1. The list holds the best anchors that were free at
  // its making, best last; it is made anew when it runs out.
  Candidate next_free(Box<T> gt, std::vector<Candidate>& list) {
    while (!list.empty()) {
      const Candidate last = list.back();
      list.pop_back();
      if (!taken_[last.anchor]) return last;
    }
    for (int64_t block = 0; block < a_.blocks; ++block) {
      if (!overlaps(a_.bounds[block], gt)) continue;
      const T best = match(block, gt, 0, unused_iou_.data(), unused_gt_.data());
      if (best == T(0) || (list.size() == kListLength && !(list.front() < Candidate{best, block * kBlock})))
        continue;
      for (int64_t i = 0; i < kBlock; ++i) {
        const Candidate candidate{ious_[i], block * kBlock + i};
        if (candidate.iou > T(0) && !taken_[candidate.anchor]) keep_best(candidate, list);
      }
    }
    if (list.empty()) return {T(0), -1};
    std::sort(list.begin(), list.end());
    const Candidate best = list.back();
    list.pop_back();
    return best;
  }

  // `list` as a heap with its worst candidate at the front, of at most kListLength.
  static void keep_best(Candidate candidate, std::vector<Candidate>& list) {
    const auto worst_first = [](const Candidate& a, const Candidate& b) { return b < a; };
    if (list.size() == kListLength) {
      if (!(list.front() < candidate)) return;
      std::pop_heap(list.begin(), list.end(), worst_first);
      list.pop_back();
    }
    list.push_back(candidate);
    std::push_heap(list.begin(), list.end(), worst_first);
  }

  const AnchorBlocks<T>& a_;
  std::vector<T> best_iou_;
  std::vector<Index<T>> best_gt_;
  std::vector<uint8_t> touched_;
  std::vector<uint8_t> taken_;
  std::vector<T> ious_, unused_iou_, region_rows_;
  std::vector<Index<T>> unused_gt_;
  std::vector<Candidate> column_;
  std::vector<std::vector<int64_t>> best_blocks_;
  std::vector<std::vector<Candidate>> lists_;
  std::vector<int32_t> next_equal_;
};

}  // namespace ssd_ops
