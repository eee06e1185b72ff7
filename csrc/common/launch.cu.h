// What a .cu file needs of torch and of the CUDA runtime: the stream, launches, scratch memory, registration.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "common/device.cuh"
#include "common/tensor.h"

// Declared by torch only where its CUDA headers are; defined by every torch that has CUDA.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

// Opens a block of registrations. The emulated kernels take CPU tensors and have a namespace of their own.
#ifdef SSD_OPS_EMULATION
#define SSD_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(ssd_ops_emulated, CPU, m)
#else
#define SSD_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(ssd_ops, CUDA, m)
#endif

namespace ssd_ops {

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// One call of an op: makes the tensor's device current, and launches on torch's current stream there.
class Launcher {
 public:
  Launcher(const char* op, const Tensor& like) : op_(op), like_(like) {
    if (like.is_cuda()) guard_.emplace(like.get_device_index());
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream) != 0)
      fail("torch has no current CUDA stream for the device of its arguments");
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // A grid of one dimension, since the other two are limited to 65,535 blocks.
  template <typename... Parameters, typename... Arguments>
  void run(void (*kernel)(Parameters...), int64_t blocks, int threads, Arguments&&... arguments) const {
    run_with_shared(kernel, blocks, threads, 0, std::forward<Arguments>(arguments)...);
  }

  template <typename... Parameters, typename... Arguments>
  void run_with_shared(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                       Arguments&&... arguments) const {
    if (measures_) return;
    if (blocks > std::numeric_limits<int32_t>::max())
      fail("the arguments must need fewer than 2^31 blocks of threads, got ", blocks);
    constexpr int64_t kWithoutAsking = 48 * 1024;
    if (shared_bytes > kWithoutAsking) allow_shared(kernel);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream_;
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
    check(cudaGetLastError());
  }

  // Also forgets the error, which the next call of the runtime would meet otherwise.
  void check(cudaError_t error) const {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    fail("CUDA said: ", cudaGetErrorString(error));
  }

  // An error of this op: "op: argument must be X, got Y".
  template <typename... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    ssd_ops::fail(op_, parts...);
  }

  // Bytes of dynamic shared memory that one block may ask for. What a kernel declares counts as well.
  int64_t shared_limit() const {
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device()));
    constexpr int kDeclared = 4096;
    return bytes - kDeclared;
  }

  // What is queued on the stream by other means: call() returns its error.
  template <typename Call>
  void queue(const Call& call) const {
    if (!measures_) check(call());
  }

  void zero(void* data, int64_t bytes) const {
    queue([&] { return cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream_); });
  }

  // Runs `body`, which asks for scratch memory and launches. It is run twice: the first time nothing is
  // launched, and what it asks for is added up, so that one allocation serves all of it.
  template <typename Body>
  void with_scratch(const Body& body) {
    measures_ = true;
    used_ = 0;
    body();
    measures_ = false;
    if (used_ > 0) {
      scratch_.emplace(new_tensor(like_, {used_}, ScalarType::Byte));
      base_ = reinterpret_cast<uintptr_t>(scratch_->mutable_data_ptr());
    }
    used_ = 0;
    body();
  }

  // `count` elements for the kernels of this call, within with_scratch. torch does not hand the memory out
  // again before the work queued on this stream so far is done.
  template <typename T>
  T* scratch(int64_t count) {
    constexpr int64_t kAlign = 256;
    const uintptr_t at = base_ + static_cast<uintptr_t>(used_);
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kAlign) * kAlign;
    return reinterpret_cast<T*>(at);
  }

 private:
  // Lets a kernel ask for all the dynamic shared memory there is. Once for each device, and always the same:
  // a thread that needs less must not take from one that needs more.
  template <typename... Parameters>
  void allow_shared(void (*kernel)(Parameters...)) const {
    static std::mutex mutex;
    static std::set<std::pair<void (*)(Parameters...), int>> allowed;
    const std::lock_guard<std::mutex> lock(mutex);
    if (allowed.count({kernel, device()})) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_limit())));
    allowed.insert({kernel, device()});
  }

  int device() const { return like_.is_cuda() ? like_.get_device_index() : 0; }

  const char* op_;
  const Tensor& like_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  cudaStream_t stream_ = nullptr;
  bool measures_ = false;
  int64_t used_ = 0;  // bytes of the scratch memory
  uintptr_t base_ = 0;
  std::optional<Tensor> scratch_;
};

// Holds a tensor, contiguous, for as long as kernels are being launched with its memory.
class DeviceInput {
 public:
  explicit DeviceInput(const Tensor& t) : tensor_(as_contiguous(t)) {
    input_.data = tensor_.const_data_ptr();
    int64_t wide = 16;
    switch (t.scalar_type()) {
      case ScalarType::Double:
        input_.dtype = Dtype::kDouble;
        break;
      case ScalarType::Half:
        input_.dtype = Dtype::kHalf;
        wide = 8;
        break;
      case ScalarType::BFloat16:
        input_.dtype = Dtype::kBFloat16;
        wide = 8;
        break;
      default:
        input_.dtype = Dtype::kFloat;
        break;
    }
    input_.aligned = reinterpret_cast<uintptr_t>(input_.data) % static_cast<uintptr_t>(wide) == 0;
  }

  operator Input() const { return input_; }

 private:
  Tensor tensor_;
  Input input_;
};

}  // namespace ssd_ops
