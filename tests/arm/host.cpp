// Runs the CPU kernels of csrc without torch: the C functions that they call, for plain tensors in memory, and
// a program that reads calls from a file and writes what they return. For processors that have no torch here:
// see tests/test_arm.py, which also says how the file is laid out.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

using Kernel = void (*)(StableIValue*, uint64_t, uint64_t);

struct AtenTensorOpaque {
  std::shared_ptr<std::vector<unsigned char>> bytes;
  std::vector<int64_t> sizes;
  int32_t dtype;
};
struct StableListOpaque {
  std::vector<StableIValue> items;
};

namespace {

// The numbers of torch's ScalarType.
enum Dtype { kByte = 0, kInt = 3, kLong = 4, kHalf = 5, kFloat = 6, kDouble = 7, kBool = 11, kBFloat16 = 15 };

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> made;
  return made;
}

int64_t size_of(int32_t dtype) {
  switch (dtype) {
    case kByte:
    case kBool:
      return 1;
    case kHalf:
    case kBFloat16:
      return 2;
    case kInt:
    case kFloat:
      return 4;
    default:
      return 8;
  }
}

int64_t count_of(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>());
}

AtenTensorOpaque* new_tensor(std::vector<int64_t> sizes, int32_t dtype) {
  // 255 in what is not written: NaN, or a number that no result has.
  auto bytes = std::make_shared<std::vector<unsigned char>>(count_of(sizes) * size_of(dtype), 255);
  return new AtenTensorOpaque{std::move(bytes), std::move(sizes), dtype};
}

template <typename T>
T read(std::FILE* file) {
  T value;
  if (std::fread(&value, sizeof value, 1, file) != 1) throw std::runtime_error("the file ends too early");
  return value;
}

std::vector<unsigned char> read_bytes(std::FILE* file, size_t count) {
  std::vector<unsigned char> bytes(count);
  if (count && std::fread(bytes.data(), count, 1, file) != 1)
    throw std::runtime_error("the file ends too early");
  return bytes;
}

StableIValue read_value(std::FILE* file) {
  const char tag = read<char>(file);
  switch (tag) {
    case 'N':  // none
      return 0;
    case 'O':  // an optional that is there
      return reinterpret_cast<StableIValue>(new StableIValue(read_value(file)));
    case 'I':  // a number of 8 bytes, whole or not
      return read<uint64_t>(file);
    case 'B':
      return read<uint8_t>(file);
    case 'L': {
      auto* list = new StableListOpaque;
      for (uint64_t left = read<uint64_t>(file); left > 0; --left) list->items.push_back(read_value(file));
      return reinterpret_cast<StableIValue>(list);
    }
    case 'T': {
      const int32_t dtype = read<int32_t>(file);
      std::vector<int64_t> sizes(read<int32_t>(file));
      for (int64_t& size : sizes) size = read<int64_t>(file);
      AtenTensorOpaque* tensor = new_tensor(sizes, dtype);
      *tensor->bytes = read_bytes(file, tensor->bytes->size());
      return reinterpret_cast<StableIValue>(tensor);
    }
    default:
      throw std::runtime_error(std::string("an unknown tag: ") + tag);
  }
}

template <typename T>
void write(std::FILE* file, T value) {
  std::fwrite(&value, sizeof value, 1, file);
}

void write_tensor(std::FILE* file, const AtenTensorOpaque& tensor) {
  write<int32_t>(file, tensor.dtype);
  write<int32_t>(file, static_cast<int32_t>(tensor.sizes.size()));
  for (const int64_t size : tensor.sizes) write<int64_t>(file, size);
  std::fwrite(tensor.bytes->data(), 1, tensor.bytes->size(), file);
}

void answer(std::FILE* calls, std::FILE* results) {
  const auto name = read_bytes(calls, read<uint32_t>(calls));
  const uint32_t num_args = read<uint32_t>(calls), num_results = read<uint32_t>(calls);
  std::vector<StableIValue> stack(std::max(num_args, num_results));
  for (uint32_t i = 0; i < num_args; ++i) stack[i] = read_value(calls);
  std::string error;
  try {
    kernels().at(std::string(name.begin(), name.end()))(stack.data(), num_args, num_results);
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  write<uint32_t>(results, static_cast<uint32_t>(error.size()));
  std::fwrite(error.data(), 1, error.size(), results);
  for (uint32_t i = 0; i < num_results && error.empty(); ++i)
    write_tensor(results, *reinterpret_cast<AtenTensorOpaque*>(stack[i]));
}

}  // namespace

extern "C" {

uint64_t aoti_torch_abi_version() {
  return uint64_t{2} << 56 | uint64_t{11} << 48;
}

#define DTYPE(function, number) \
  int32_t function() {          \
    return number;              \
  }
DTYPE(aoti_torch_device_type_cpu, 0)
DTYPE(aoti_torch_device_type_cuda, 1)
DTYPE(aoti_torch_memory_format_contiguous_format, 0)
DTYPE(aoti_torch_dtype_uint8, kByte)
DTYPE(aoti_torch_dtype_int8, 1)
DTYPE(aoti_torch_dtype_int16, 2)
DTYPE(aoti_torch_dtype_int32, kInt)
DTYPE(aoti_torch_dtype_int64, kLong)
DTYPE(aoti_torch_dtype_float16, kHalf)
DTYPE(aoti_torch_dtype_float32, kFloat)
DTYPE(aoti_torch_dtype_float64, kDouble)
DTYPE(aoti_torch_dtype_complex32, 8)
DTYPE(aoti_torch_dtype_complex64, 9)
DTYPE(aoti_torch_dtype_complex128, 10)
DTYPE(aoti_torch_dtype_bool, kBool)
DTYPE(aoti_torch_dtype_bfloat16, kBFloat16)
DTYPE(aoti_torch_dtype_float8_e5m2, 23)
DTYPE(aoti_torch_dtype_float8_e4m3fn, 24)
DTYPE(aoti_torch_dtype_float8_e5m2fnuz, 25)
DTYPE(aoti_torch_dtype_float8_e4m3fnuz, 26)
DTYPE(aoti_torch_dtype_uint16, 27)
DTYPE(aoti_torch_dtype_uint32, 28)
DTYPE(aoti_torch_dtype_uint64, 29)
DTYPE(torch_dtype_float8_e8m0fnu, 44)
DTYPE(torch_dtype_float4_e2m1fn_x2, 45)

AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle*) {
  return 0;
}
AOTITorchError aoti_torch_library_init_fragment(const char*, const char*, uint32_t, TorchLibraryHandle*) {
  return 0;
}
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char*) {
  return 0;
}
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) {
  return 0;
}
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, Kernel kernel, uint64_t) {
  kernels()[name] = kernel;
  return 0;
}
// Only for tensors that are not contiguous.
AOTITorchError torch_call_dispatcher(const char*, const char*, StableIValue*, uint64_t) {
  return 1;
}

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  delete tensor;
  return 0;
}
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* made) {
  *made = new AtenTensorOpaque(*from);
  return 0;
}
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t*, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* made) {
  *made = new_tensor({sizes, sizes + dim}, dtype);
  return 0;
}
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim) {
  *dim = static_cast<int64_t>(tensor->sizes.size());
  return 0;
}
AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* count) {
  *count = count_of(tensor->sizes);
  return 0;
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** sizes) {
  *sizes = tensor->sizes.data();
  return 0;
}
AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t at, int64_t* size) {
  *size = tensor->sizes.at(at < 0 ? at + static_cast<int64_t>(tensor->sizes.size()) : at);
  return 0;
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype) {
  *dtype = tensor->dtype;
  return 0;
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = 0;
  return 0;
}
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = -1;
  return 0;
}
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle, bool* is) {
  *is = true;
  return 0;
}
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  *data = tensor->bytes->data();
  return 0;
}
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  *data = tensor->bytes->data();
  return 0;
}
AOTITorchError torch_list_size(StableListHandle list, size_t* size) {
  *size = list->items.size();
  return 0;
}
AOTITorchError torch_list_get_item(StableListHandle list, size_t at, StableIValue* item) {
  *item = list->items.at(at);
  return 0;
}
AOTITorchError torch_delete_list(StableListHandle list) {
  delete list;
  return 0;
}
AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = 1;
  return 0;
}
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body, void* context) {
  if (begin < end) body(begin, end, context);
  return 0;
}

}  // extern "C"

int main(int count, char** arguments) {
  if (count != 3) return 2;
  std::FILE* calls = std::fopen(arguments[1], "rb");
  std::FILE* results = std::fopen(arguments[2], "wb");
  if (!calls || !results) return 2;
  for (uint32_t left = read<uint32_t>(calls); left > 0; --left) answer(calls, results);
  return std::fclose(results) == 0 ? 0 : 1;
}
