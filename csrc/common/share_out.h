// How the CPU kernels share out images, or other parts of the work, to threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>
#include <mutex>

namespace ssd_ops {

// body(next) in each thread. next(i) is true and gives the number of a part, 0..count-1, as long as there is one
// that no thread has taken. So a thread with quick parts takes more of them, and one that the machine stops
// holds up a single part. Which thread does which part must not matter. What a thread throws is thrown here
// as it is: parallel_for would make a text of it.
template <typename Body>
void share_out(int64_t count, const Body& body) {
  std::atomic<int64_t> taken{0};
  const auto next = [&](int64_t& i) {
    i = taken.fetch_add(1, std::memory_order_relaxed);
    return i < count;
  };
  std::mutex one_at_a_time;
  std::exception_ptr thrown;
  torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    try {
      body(next);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(one_at_a_time);
      thrown = std::current_exception();
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace ssd_ops
