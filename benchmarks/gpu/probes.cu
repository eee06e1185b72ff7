// What a GPU needs for the steps that the kernels are made of. Prints a line of JSON.
//
//   nvcc -std=c++17 -O3 --fmad=false --expt-relaxed-constexpr -arch=native -Icsrc benchmarks/gpu/probes.cu
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cub/device/device_radix_sort.cuh>
#include <string>
#include <vector>

#include "common/block_sort.cuh"
#include "common/box.h"

namespace cg = cooperative_groups;
using namespace ssd_ops;

static void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "probes: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

static std::string report;
static void say(const std::string& name, double value) {
  char text[160];
  std::snprintf(text, sizeof(text), "%s\"%s\": %.4g", report.empty() ? "" : ", ", name.c_str(), value);
  report += text;
}

// Microseconds of a replay of what `body` puts on the stream; the median of 50.
template <typename Body>
static double in_graph(const Body& body) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  body(stream);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 60; ++i) {
    check(cudaEventRecord(start, stream));
    check(cudaGraphLaunch(exec, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, end));
    if (i >= 10) times.push_back(ms * 1000);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

__global__ void empty() {}

__global__ void waits_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

static void launch_chain(cudaStream_t stream, int nodes, bool early) {
  for (int i = 0; i < nodes; ++i) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(132);
    config.blockDim = dim3(256);
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    check(cudaLaunchKernelEx(&config, early ? &waits_for_the_kernel_before : &empty));
  }
}

// Each thread tests its box against the same 256 boxes, over and over.
template <bool kDivide>
__global__ void iou_pairs(const float* boxes, int rounds, int* hits) {
  __shared__ Box<float> others[256];
  others[threadIdx.x] = load_box(boxes + 4 * threadIdx.x);
  __syncthreads();
  const Box<float> mine = load_box(boxes + 4 * ((blockIdx.x * blockDim.x + threadIdx.x) % 1024));
  const float my_area = area(mine);
  int count = 0;
  for (int r = 0; r < rounds; ++r) {
    for (int i = 0; i < 256; ++i) {
      const float inter = intersection(others[i], mine), other_area = area(others[i]);
      if (kDivide) {
        count += iou(inter, my_area, other_area) > 0.5f;
      } else {
        count += inter > 0.0f && inter >= 0.4999995f * ((my_area + other_area) - inter);
      }
    }
  }
  if (count == -1) *hits = count;
}

__global__ void __launch_bounds__(1024) sort_block(const uint64_t* in, int count, uint64_t* out) {
  extern __shared__ __align__(16) unsigned char shared[];
  uint64_t* keys = reinterpret_cast<uint64_t*>(shared);
  for (int i = threadIdx.x; i < count; i += blockDim.x) keys[i] = in[i];
  __syncthreads();
  block_sort(keys, count);
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = keys[i];
}

__global__ void block_barriers(int rounds) {
  for (int i = 0; i < rounds; ++i) __syncthreads();
}

__global__ void grid_barriers(int rounds) {
  for (int i = 0; i < rounds; ++i) cg::this_grid().sync();
}

__global__ void cluster_barriers(int rounds) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < rounds; ++i) cg::this_cluster().sync();
#endif
}

__global__ void maxima(unsigned long long* at, int addresses, int rounds) {
  const unsigned long long thread = blockIdx.x * blockDim.x + threadIdx.x;
  for (int i = 0; i < rounds; ++i)
    atomicMax(&at[(thread * 7 + i) % addresses], thread * 2654435761ull + i);
}

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  say("multiprocessors", properties.multiProcessorCount);
  for (const int nodes : {1, 2, 4, 16}) {
    say("graph of " + std::to_string(nodes) + " empty kernels, us",
        in_graph([&](cudaStream_t s) { launch_chain(s, nodes, false); }));
    if (properties.major >= 9)
      say("the same with early launch, us", in_graph([&](cudaStream_t s) { launch_chain(s, nodes, true); }));
  }

  std::vector<float> host(4 * 1024);
  for (size_t i = 0; i < host.size(); i += 4) {
    for (int k = 0; k < 2; ++k) {
      host[i + k] = static_cast<float>(std::rand()) / RAND_MAX;
      host[i + 2 + k] = host[i + k] + 0.2f * static_cast<float>(std::rand()) / RAND_MAX;
    }
  }
  float* boxes;
  int* hits;
  check(cudaMalloc(&boxes, host.size() * 4));
  check(cudaMalloc(&hits, 4));
  check(cudaMemcpy(boxes, host.data(), host.size() * 4, cudaMemcpyHostToDevice));
  const int blocks = properties.multiProcessorCount * 8, rounds = 200;
  const double pairs = 256.0 * blocks * 256.0 * rounds;
  say("IoU tests without division, 1e9/s", pairs / 1e3 / in_graph([&](cudaStream_t s) {
                                            iou_pairs<false><<<blocks, 256, 0, s>>>(boxes, rounds, hits);
                                          }));
  say("IoU tests with division, 1e9/s", pairs / 1e3 / in_graph([&](cudaStream_t s) {
                                         iou_pairs<true><<<blocks, 256, 0, s>>>(boxes, rounds, hits);
                                       }));

  const int most = 100000;
  std::vector<uint64_t> keys(most);
  for (uint64_t& key : keys)
    key = static_cast<uint64_t>(std::rand()) << 33 ^ static_cast<uint64_t>(std::rand());
  uint64_t *in, *out;
  int32_t *values, *sorted_values;
  check(cudaMalloc(&in, most * 8));
  check(cudaMalloc(&out, most * 8));
  check(cudaMalloc(&values, most * 4));
  check(cudaMalloc(&sorted_values, most * 4));
  check(cudaMemcpy(in, keys.data(), most * 8, cudaMemcpyHostToDevice));
  check(cudaFuncSetAttribute(sort_block, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024));
  for (const int count : {1024, 2048, 4096, 8192})
    say("block sort of " + std::to_string(count) + ", us", in_graph([&](cudaStream_t s) {
          sort_block<<<1, 1024, 8 * count, s>>>(in, count, out);
        }));
  for (const int count : {10000, 100000}) {
    size_t bytes = 0;
    check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, in, out, values, sorted_values, count, 0, 32));
    void* storage;
    check(cudaMalloc(&storage, bytes));
    say("CUB sort of " + std::to_string(count) + " by 32 bits, us", in_graph([&](cudaStream_t s) {
          check(cub::DeviceRadixSort::SortPairs(storage, bytes, in, out, values, sorted_values, count, 0, 32, s));
        }));
    check(cudaFree(storage));
  }

  int barriers = 1000;  // so microseconds of them all are nanoseconds of one
  say("block barrier of 1,024 threads, ns",
      in_graph([&](cudaStream_t s) { block_barriers<<<1, 1024, 0, s>>>(barriers); }));
  if (properties.cooperativeLaunch) {
    void* arguments[] = {&barriers};
    const double us = in_graph([&](cudaStream_t s) {
      check(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(&grid_barriers),
                                        dim3(static_cast<unsigned>(properties.multiProcessorCount)), dim3(256),
                                        arguments, 0, s));
    });
    say("grid barrier, ns", us);
  }
  if (properties.major >= 9) {
    for (const unsigned size : {2u, 4u, 8u}) {
      const double us = in_graph([&](cudaStream_t s) {
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(size);
        config.blockDim = dim3(256);
        config.stream = s;
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = size;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        config.attrs = &attribute;
        config.numAttrs = 1;
        check(cudaLaunchKernelEx(&config, &cluster_barriers, barriers));
      });
      say("cluster barrier of " + std::to_string(size) + " blocks, ns", us);
    }
  }
  unsigned long long* slots;
  check(cudaMalloc(&slots, 2048 * 8));
  check(cudaMemset(slots, 0, 2048 * 8));
  say("64-bit atomic maxima to 2,048 addresses, 1e9/s",
      blocks * 256.0 * 100 / 1e3 /
          in_graph([&](cudaStream_t s) { maxima<<<blocks, 256, 0, s>>>(slots, 2048, 100); }));
  check(cudaDeviceSynchronize());
  std::printf("{%s}\n", report.c_str());
  return 0;
}
