// A stand-in for the CUDA runtime's header, first on the include path: the .cu and .cuh files compile as
// plain C++ against it, and their kernels run on the CPU (fibers.h), launches included. build.py turns a
// declaration with __shared__ into one with emulation::shared, since a macro cannot.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define SSD_DYNAMIC_SHARED(name) unsigned char* const name = ::emulation::dynamic_shared()

namespace emulation {

// A variable of type T in the memory of the running block. Each declaration has a type of its own, of a lambda.
template <typename T, typename Declaration>
T& shared(Declaration) {
  static_assert(std::is_trivially_destructible_v<T>, "shared memory is not initialised");
  static const char declaration = 0;
  return *static_cast<T*>(shared_variable(&declaration, sizeof(T)));
}

// One of the numbers in threadIdx and the like: what the running CUDA thread sees.
template <Index Position::* index, unsigned Index::* axis>
struct Number {
  operator unsigned() const { return position().*index.*axis; }
};

template <Index Position::* index>
struct Numbers {
  Number<index, &Index::x> x;
  Number<index, &Index::y> y;
  Number<index, &Index::z> z;
};

}  // namespace emulation

inline constexpr emulation::Numbers<&emulation::Position::thread> threadIdx;
inline constexpr emulation::Numbers<&emulation::Position::block> blockIdx;
inline constexpr emulation::Numbers<&emulation::Position::block_size> blockDim;
inline constexpr emulation::Numbers<&emulation::Position::grid_size> gridDim;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
namespace emulation {

// As on a GPU, an error stays until cudaGetLastError is asked for it.
inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t failed() {
  return last_error = cudaErrorInvalidConfiguration;
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() {
  return std::exchange(emulation::last_error, cudaSuccess);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::kSharedLimit;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulation::kSharedLimit) return emulation::failed();
  emulation::set_shared_attribute(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  // The limits of a GPU hold here too.
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      block.x * block.y * block.z == 0 || block.x * block.y * block.z > 1024 ||
      !emulation::may_launch(reinterpret_cast<const void*>(kernel), config->dynamicSmemBytes))
    return emulation::failed();
  std::tuple<void (*)(Parameters...), std::tuple<Parameters...>> call(
      kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters are 4 KB at most");
  emulation::run_grid(
      {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, config->dynamicSmemBytes,
      [](void* argument) {
        auto& [function, values] = *static_cast<decltype(call)*>(argument);
        std::apply(function, values);
      },
      &call);
  return cudaSuccess;
}

inline void __syncthreads() {
  emulation::block_barrier();
}
inline void __threadfence() {
  emulation::fence();
}
inline void __nanosleep(unsigned) {
  emulation::sleep();
}

namespace emulation {

template <typename T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8, "a lane gives 8 bytes at most");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane() {
  const Position& p = position();
  return static_cast<int>((p.thread.x + p.block_size.x * (p.thread.y + p.block_size.y * p.thread.z)) % 32);
}

}  // namespace emulation

// A last argument that callers leave out: where the call stands.
#define EMULATION_PLACE(operation) \
  emulation::Place place = {operation, __builtin_FILE(), static_cast<unsigned>(__builtin_LINE())}

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_PLACE("__syncwarp")) {
  emulation::warp_barrier(mask, place);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, EMULATION_PLACE("__shfl_sync")) {
  return emulation::unpack<T>(emulation::warp_exchange(mask, emulation::pack(value), place)[source & 31]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, EMULATION_PLACE("__shfl_xor_sync")) {
  return __shfl_sync(mask, value, emulation::lane() ^ lanes, place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, EMULATION_PLACE("__shfl_up_sync")) {
  const int lane = emulation::lane(), from = lane - static_cast<int>(by);
  return __shfl_sync(mask, value, from < 0 ? lane : from, place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, EMULATION_PLACE("__shfl_down_sync")) {
  const int lane = emulation::lane(), from = lane + static_cast<int>(by);
  return __shfl_sync(mask, value, from > 31 ? lane : from, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_PLACE("__ballot_sync")) {
  const uint64_t* given = emulation::warp_exchange(mask, predicate != 0, place);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) result |= static_cast<unsigned>(given[lane]) << lane;
  return result;
}
inline int __any_sync(unsigned mask, int predicate, EMULATION_PLACE("__any_sync")) {
  return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATION_PLACE("__all_sync")) {
  return __ballot_sync(mask, predicate, place) == mask;
}
#undef EMULATION_PLACE

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}

// Relaxed, as on a GPU: they order nothing but themselves.
namespace ssd_ops {
template <typename T>
T load_relaxed(const T* p) {
  const T value = __atomic_load_n(p, __ATOMIC_RELAXED);
  emulation::loads(p);
  return value;
}
template <typename T>
void store_relaxed(T* p, std::type_identity_t<T> value) {
  emulation::stores(p);
  __atomic_store_n(p, value, __ATOMIC_RELAXED);
  emulation::changed(p);
}
}  // namespace ssd_ops

namespace emulation {

// Puts change(old) in place of what is there, at once for all other threads, and returns it.
template <typename T, typename Change>
T exchange(T* at, const Change& change) {
  stores(at);
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, change(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  change(old) == old ? loads(at) : changed(at);
  return old;
}

}  // namespace emulation

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return emulation::exchange(at, [value](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return emulation::exchange(at, [value](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return emulation::exchange(at, [value](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return emulation::exchange(at, [value](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return emulation::exchange(at, [value](T) { return value; });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return emulation::exchange(at, [expected, value](T old) { return old == expected ? value : old; });
}
