// Loops compiled several times, for the instruction sets of x86-64, and chosen when the library loads.
// Every version gives the same bits: no FMA is formed (-ffp-contract=off) and no sum is reordered.
#pragma once

// static: each source file that includes a loop has its own, since a linker cannot merge such sets.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(SSD_OPS_NO_CLONES)
#define SSD_SIMD \
  [[maybe_unused]] __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default"), noinline)) static
#else
#define SSD_SIMD [[maybe_unused]] static
#endif

namespace ssd_ops {

// Boxes handled together in a vector loop: one AVX-512 register of floats, two AVX ones.
constexpr int kLanes = 16;

}  // namespace ssd_ops
