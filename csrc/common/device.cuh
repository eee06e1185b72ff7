// What kernels need beside the box formulas: loads of any dtype, and steps of a warp or a block. No torch
// header.
//
// Nothing here or in a kernel is specific to one GPU: warps, shared memory and barriers only. The same files
// also compile as plain C++ against tests/emulation/, so a kernel is launched by cudaLaunchKernelEx, never
// by <<<>>>, and dynamic shared memory is declared by SSD_DYNAMIC_SHARED.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "common/box.h"

#ifndef SSD_DYNAMIC_SHARED
#define SSD_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace ssd_ops {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

enum class Dtype : int { kFloat, kDouble, kHalf, kBFloat16 };

struct BFloat16Bits {
  uint16_t bits;
};

// A contiguous tensor of any floating dtype. Its numbers are converted in registers as they are read; all
// threads take the same branch of the dtype.
struct Input {
  const void* data;
  Dtype dtype;
  bool aligned;  // rows of four can be read by one wide load
};

template <typename T>
__device__ __forceinline__ T convert(float x) {
  return static_cast<T>(x);
}
template <typename T>
__device__ __forceinline__ T convert(double x) {
  return static_cast<T>(x);
}
template <typename T>
__device__ __forceinline__ T convert(T x) {
  return x;
}
template <typename T>
__device__ __forceinline__ T convert(__half x) {
  return static_cast<T>(__half2float(x));
}
template <typename T>
__device__ __forceinline__ T convert(BFloat16Bits x) {
  return static_cast<T>(bit_cast<float>(static_cast<uint32_t>(x.bits) << 16));
}

// body(p) with the data as a pointer of its own type.
template <typename Body>
__device__ __forceinline__ auto with_type(const Input& in, const Body& body) {
  switch (in.dtype) {
    case Dtype::kDouble:
      return body(static_cast<const double*>(in.data));
    case Dtype::kHalf:
      return body(static_cast<const __half*>(in.data));
    case Dtype::kBFloat16:
      return body(static_cast<const BFloat16Bits*>(in.data));
    default:
      return body(static_cast<const float*>(in.data));
  }
}

template <typename T>
__device__ __forceinline__ T load(const Input& in, int64_t i) {
  return with_type(in, [i](const auto* p) { return convert<T>(p[i]); });
}

// Four numbers that one instruction can load or store (two for double).
template <typename E>
struct alignas(4 * sizeof(E) < 16 ? 4 * sizeof(E) : 16) Four {
  E v[4];
};

// Four numbers that begin at a multiple of the alignment of Four.
template <typename E, typename T>
__device__ __forceinline__ void load_four(const E* p, T (&values)[4]) {
  const Four<E> f = *reinterpret_cast<const Four<E>*>(p);
  for (int j = 0; j < 4; ++j) values[j] = convert<T>(f.v[j]);
}

// Row `row` of [.., 4].
template <typename T>
__device__ __forceinline__ Box<T> load_row(const Input& in, int64_t row) {
  return with_type(in, [&in, row](const auto* p) -> Box<T> {
    using E = std::remove_cv_t<std::remove_reference_t<decltype(*p)>>;
    p += 4 * row;
    if (in.aligned) {
      const Four<E> f = *reinterpret_cast<const Four<E>*>(p);
      return {convert<T>(f.v[0]), convert<T>(f.v[1]), convert<T>(f.v[2]), convert<T>(f.v[3])};
    }
    return {convert<T>(p[0]), convert<T>(p[1]), convert<T>(p[2]), convert<T>(p[3])};
  });
}

// Row of scratch or output memory [.., 4], which begins at a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ Box<T> load_row(const T* rows, int64_t row) {
  const Four<T> f = reinterpret_cast<const Four<T>*>(rows)[row];
  return {f.v[0], f.v[1], f.v[2], f.v[3]};
}

template <typename T>
__device__ __forceinline__ void store_row(T* rows, int64_t row, Box<T> box) {
  reinterpret_cast<Four<T>*>(rows)[row] = {{box.x1, box.y1, box.x2, box.y2}};
}

__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ __forceinline__ int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarp;
}
__device__ __forceinline__ unsigned lanes_below(int lane) {
  return (1u << lane) - 1;
}

// Whether bit i of a bitmap is set.
__device__ __forceinline__ bool test_bit(const unsigned* bits, int64_t i) {
  return bits[i / 32] >> (i % 32) & 1;
}

// Index of the thread in a one-dimensional grid.
__device__ __forceinline__ int64_t global_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// The sum over the lanes up to this one.
__device__ __forceinline__ int warp_inclusive_sum(int value) {
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(step));
    if (lane_index() >= step) value += other;
  }
  return value;
}

// The sum of the values of threads of lower index, and (in `total`) of all the block's. `warp_sums` has room
// for every warp. Every thread has to call it; a barrier stands before and after the sums are read.
__device__ __forceinline__ int block_exclusive_sum(int value, int* warp_sums, int& total) {
  const int lane = lane_index(), warp = warp_index(), warps = static_cast<int>(blockDim.x) / kWarp;
  const int upto = warp_inclusive_sum(value);
  if (lane == kWarp - 1) warp_sums[warp] = upto;
  __syncthreads();
  if (warp == 0) {
    const int sum = warp_inclusive_sum(lane < warps ? warp_sums[lane] : 0);
    __syncwarp();
    if (lane < warps) warp_sums[lane] = sum;
  }
  __syncthreads();
  const int before = warp > 0 ? warp_sums[warp - 1] : 0;
  total = warp_sums[warps - 1];
  __syncthreads();
  return before + upto - value;
}

// Words that threads of different blocks read and write while they run. The order of other memory
// accesses around them is not fixed, and nothing may depend on it.
#ifndef SSD_OPS_EMULATION
template <typename T>
__device__ __forceinline__ T load_relaxed(const T* p) {
  return *static_cast<const volatile T*>(p);
}
template <typename T>
__device__ __forceinline__ void store_relaxed(T* p, T value) {
  *static_cast<volatile T*>(p) = value;
}
#endif

}  // namespace ssd_ops
