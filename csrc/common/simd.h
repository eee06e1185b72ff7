// Loops compiled several times, for the instruction sets of x86-64, and chosen when they run.
// Every version gives the same bits: no FMA is formed (-ffp-contract=off) and no sum is reordered.
#pragma once

#include <cstdint>
#include <cstdlib>

// SSD_SIMD(result, name, parameters, arguments) defines `name`, which runs name_lanes, a function of
// plain loops that is always inlined, in the version for the processor at hand.
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#define SSD_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#else
#define SSD_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#endif
#define SSD_SIMD(result, name, parameters, arguments)                          \
  __attribute__((target(SSD_AVX512))) static result name##_avx512 parameters { \
    return name##_lanes arguments;                                             \
  }                                                                            \
  __attribute__((target("avx2"))) static result name##_avx2 parameters {       \
    return name##_lanes arguments;                                             \
  }                                                                            \
  static result name##_sse2 parameters {                                       \
    return name##_lanes arguments;                                             \
  }                                                                            \
  [[maybe_unused]] static result name parameters {                             \
    const int level = ::ssd_ops::simd_level();                                 \
    if (level == 512) return name##_avx512 arguments;                          \
    return level == 256 ? name##_avx2 arguments : name##_sse2 arguments;       \
  }
#else
#define SSD_SIMD(result, name, parameters, arguments) \
  [[maybe_unused]] static result name parameters {    \
    return name##_lanes arguments;                    \
  }
#endif

namespace ssd_ops {

#if defined(__x86_64__) && defined(__GNUC__)
// Width in bits of the widest vectors that this processor has, or the environment variable
// SSD_OPS_SIMD allows: 128, 256 or 512. Tests use it to compare the versions.
inline int simd_level() {
  static const int level = [] {
    const char* limit = std::getenv("SSD_OPS_SIMD");
    const int widest = limit ? std::atoi(limit) : 512;
    if (widest >= 512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return 512;
    return widest >= 256 && __builtin_cpu_supports("avx2") ? 256 : 128;
  }();
  return level;
}
#endif

// Room for boxes is made in multiples of this, so that vector loops have no remainder: one AVX-512
// register of floats, two AVX or four SSE ones.
constexpr int64_t kLanes = 16;

}  // namespace ssd_ops
