// The launches that multiclass_nms and detect share.
#pragma once

#include "detection/level_topk.cuh"
#include "detection/multiclass_nms.h"
#include "detection/portions.cuh"
#include "detection/selection.cuh"
#include "nms/greedy.cu.h"

namespace ssd_ops {

// More detections than this are found by NMS of all candidates, spread over the GPU: one block would compare
// each candidate with too many.
constexpr int64_t kMostByPortions = 1024;
#ifdef SSD_OPS_EMULATION
constexpr int kListWanted = 64, kPortion = 32, kMostRoom = 64;  // so that the tests' sets meet every way
#else
constexpr int kListWanted = 2048, kPortion = 512, kMostRoom = 2048;
#endif

// Of the best scores of all boxes, makes scores.level_end, and takes out the boxes that have no candidate any more.
template <typename T, typename Scores>
void launch_level_topk(Launcher& launcher, Scores& scores, const BestScores<T>& best, int64_t num_images,
                       const SelectionRules<T>& rules) {
  const int64_t rows = num_images * scores.num_boxes;
  const LevelTopk<T> out{launcher.scratch<int32_t>(rows), launcher.scratch<Candidate<T>>(rows)};
  LevelBegins levels = {};
  const auto launch = [&] {
    launcher.run(&level_topk_kernel<T, Scores>, num_images * levels.count, kSelectThreads, scores, levels,
                 rules.candidates.topk_per_level, rules.score_threshold, best, out);
    levels.begin[0] = levels.begin[levels.count];
    levels.count = 0;
  };
  for (const int64_t count : rules.candidates.level_counts) {
    if (levels.count == kLevelsOfLaunch) launch();
    levels.begin[levels.count + 1] = levels.begin[levels.count] + count;
    ++levels.count;
  }
  launch();
  scores.level_end = out.ends;
}

// Leaves to `scores` the candidates that the rules want before the topk of each class.
template <typename T, typename Scores>
void launch_candidate_rules(Launcher& launcher, Scores& scores, const BestScores<T>& best, int64_t num_images,
                            const SelectionRules<T>& rules) {
  if (rules.candidates.best_class_only) {
    const int64_t rows = num_images * scores.num_boxes;
    int32_t* best_class = launcher.scratch<int32_t>(rows);
    launcher.run(&best_class_kernel<T, Scores>, ceil_div(rows, kBestThreads / kWarp), kBestThreads, scores,
                 best, rows, rules.score_threshold, best_class);
    scores.best_class = best_class;
  }
  if (rules.candidates.topk_per_level != -1) launch_level_topk(launcher, scores, best, num_images, rules);
}

template <typename T, typename Scores, typename Boxes>
void launch_all(Launcher& launcher, Scores scores, const Boxes& boxes, int64_t num_images,
                int64_t num_classes, const SelectionRules<T>& rules, const DetectionRows<T>& out) {
  const int64_t num_boxes = scores.num_boxes, rows = num_images * num_classes, total = rows * num_boxes;
  if (total > 0 && (rules.candidates.best_class_only || rules.candidates.topk_per_level != -1)) {
    const int64_t all_boxes = num_images * num_boxes;
    BestScores<T> best = {};
    best.best = launcher.scratch<T>(all_boxes);
    if (Scores::kSoftmax) best.softmax = launcher.scratch<Softmax<T>>(all_boxes);
    launcher.run(&best_of_rows_kernel<T, Scores>, ceil_div(all_boxes, kScoreThreads), kScoreThreads, scores,
                 all_boxes, best);
    launch_candidate_rules(launcher, scores, best, num_images, rules);
  }
  T* by_class = launcher.scratch<T>(total);
  if (total > 0)
    launcher.run(&scores_by_class_kernel<T, Scores>, ceil_div(num_images * num_boxes, kScoreThreads),
                 kScoreThreads, scores, num_images, rules.score_threshold, by_class);
  const T* candidate_scores = by_class;
  const int32_t* box_of = nullptr;
  int64_t per_class = num_boxes;
  if (rules.topk != -1 && rules.topk < num_boxes) {
    per_class = rules.topk;
    T* best_scores = launcher.scratch<T>(rows * per_class);
    int32_t* best_boxes = launcher.scratch<int32_t>(rows * per_class);
    if (total > 0)
      launcher.run(&class_topk_kernel<T>, rows, kSelectThreads, by_class, num_boxes, per_class, best_scores,
                   best_boxes);
    candidate_scores = best_scores;
    box_of = best_boxes;
  }
  const int64_t count = num_classes * per_class;
  const NmsPlan<T> plan{num_images, count, count, rules.max_detections, rules.limit};
  const auto run = [&](auto within_class) {
    using Found = ClassCandidates<T, Boxes, decltype(within_class)::value>;
    const Found candidates{candidate_scores, box_of, per_class, count, boxes};
    const DetectionWriter<T, Found> writer{candidates, rules.max_detections, out};
    launch_greedy_nms<T>(launcher, candidates, writer, plan);
  };
  rules.class_agnostic ? run(std::false_type()) : run(std::true_type());
}

template <typename T, typename Scores, typename Boxes>
void launch_by_portions(Launcher& launcher, Scores scores, const Boxes& boxes, int64_t num_images,
                        int64_t num_classes, const SelectionRules<T>& rules, int room,
                        const DetectionRows<T>& out) {
  if (num_images == 0) return;
  const int64_t num_boxes = scores.num_boxes, rows = num_images * num_boxes;
  const bool has_topk = rules.topk != -1 && rules.topk < num_boxes;

  Shortlist<T> shortlist = {};
  shortlist.wanted = kListWanted;
  shortlist.room =
      static_cast<int>(std::min<int64_t>(2 * kListWanted, std::max<int64_t>(1, num_boxes * num_classes)));
  const int64_t words = num_images * (kBins + 1 + (has_topk ? num_classes : 0));
  shortlist.best.bins = launcher.scratch<int32_t>(words);
  launcher.zero(shortlist.best.bins, 4 * words);
  shortlist.counts = shortlist.best.bins + num_images * kBins;
  shortlist.seen = has_topk ? shortlist.counts + num_images : nullptr;
  shortlist.best.best = launcher.scratch<T>(rows);
  if (Scores::kSoftmax) shortlist.best.softmax = launcher.scratch<Softmax<T>>(rows);
  shortlist.list = launcher.scratch<Candidate<T>>(num_images * shortlist.room);
  if (rows * num_classes > 0) {
    const int64_t row_bytes = best_row_length(scores.width) * static_cast<int64_t>(sizeof(T));
    const int of_block = static_cast<int>(std::clamp<int64_t>(kBestShared / row_bytes, 1, kMostBestRows));
    launcher.run_with_shared(&best_scores_kernel<T, Scores>, ceil_div(rows, of_block), kBestThreads,
                             of_block * row_bytes, scores, rows, of_block, rules.score_threshold,
                             shortlist.best);
    launch_candidate_rules(launcher, scores, shortlist.best, num_images, rules);
    const int64_t blocks = ceil_div(num_boxes, kListRows);
    launcher.run(&list_kernel<T, Scores>, num_images * blocks, kListThreads, scores, shortlist,
                 rules.score_threshold, blocks);
  }
  PortionsPlan<T> plan = {};
  plan.score_threshold = rules.score_threshold;
  plan.limit = rules.limit;
  plan.topk = rules.topk;
  plan.max_detections = static_cast<int>(rules.max_detections);
  plan.portion = kPortion;
  plan.room = room;
  const int64_t shared = PortionsRoom<T>::bytes(room, rules.max_detections);
  const auto run = [&](auto kernel) {
    launcher.run_with_shared(kernel, num_images, kNmsThreads, shared, scores, boxes, shortlist, plan, out);
  };
  rules.class_agnostic ? run(&portions_kernel<T, Scores, Boxes, false>)
                       : run(&portions_kernel<T, Scores, Boxes, true>);
}

// Scores: ClassScores. Boxes: boxes(image, i) is box i of an image.
template <typename T, typename Scores, typename Boxes>
Detections launch_selection(Launcher& launcher, const Tensor& like, const Scores& scores, const Boxes& boxes,
                            int64_t num_images, const SelectionRules<T>& rules) {
  const int64_t num_classes = scores.width - Scores::kSoftmax;
  if (scores.num_boxes * num_classes > std::numeric_limits<int32_t>::max())
    launcher.fail("candidates of an image must be fewer than 2^31 on a GPU, got ",
                  scores.num_boxes * num_classes);
  const int64_t limit = launcher.shared_limit();
  int room = kMostRoom;
  while (room > kMostRoom / 4 && PortionsRoom<T>::bytes(room, rules.max_detections) > limit) room /= 2;
  const bool fits = PortionsRoom<T>::bytes(room, rules.max_detections) <= limit &&
                    best_row_length(scores.width) * static_cast<int64_t>(sizeof(T)) <= limit;
  const DetectionTensors<T> out(like, num_images, rules.max_detections);
  launcher.with_scratch([&] {
    if (rules.max_detections <= kMostByPortions && fits)
      launch_by_portions(launcher, scores, boxes, num_images, num_classes, rules, room, out.rows(0));
    else
      launch_all(launcher, scores, boxes, num_images, num_classes, rules, out.rows(0));
  });
  return out.tensors();
}

}  // namespace ssd_ops
