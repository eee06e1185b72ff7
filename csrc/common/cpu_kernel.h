// How a CPU kernel is registered: where no memory is left for its work, that is an error as any other.
#pragma once

#include <new>
#include <string>
#include <type_traits>

#include "common/tensor.h"

namespace ssd_ops {

// Calls a kernel with its own signature, which TORCH_BOX reads.
template <const char* op, auto kernel>
struct CpuKernel;

template <const char* op, typename Result, typename... Args, Result (*kernel)(Args...)>
struct CpuKernel<op, kernel> {
  static Result call(Args... args) {
    try {
      return kernel(std::forward<Args>(args)...);
    } catch (const std::bad_alloc&) {
      std::string shapes;
      (append_shape<Args>(shapes, args), ...);
      fail(op, "arguments must leave memory for the work on them, got shapes ", shapes);
    }
  }

 private:
  // What a kernel took by value it may have moved from.
  template <typename Arg>
  static void append_shape(std::string& shapes, const std::decay_t<Arg>& argument) {
    if constexpr (std::is_same_v<Arg, const Tensor&>)
      shapes += (shapes.empty() ? "" : ", ") + shape_text(argument);
  }
};

}  // namespace ssd_ops

// The kernel <op>_cpu, for m.impl.
#define SSD_CPU_KERNEL(op)                                                        \
  [](StableIValue* stack, uint64_t num_args, uint64_t num_results) {              \
    static constexpr char name[] = #op;                                           \
    TORCH_BOX((&CpuKernel<name, &op##_cpu>::call))(stack, num_args, num_results); \
  }
