// What libssd_ops.so and libssd_ops_cuda.so say of themselves, in C: all other symbols of theirs are hidden
// (csrc/common/exports.map). And the check that a process loads each of them once.
#pragma once

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define SSD_OPS_TEXT_(x) #x
#define SSD_OPS_TEXT(x) SSD_OPS_TEXT_(x)

#pragma GCC visibility push(default)
extern "C" {
// "0.1.0"
const char* ssd_ops_version();
const char* ssd_ops_cuda_version();
// The facts of the build, as JSON.
const char* ssd_ops_build_info();
const char* ssd_ops_cuda_build_info();
}
#pragma GCC visibility pop

namespace ssd_ops {

// The file that holds an address.
inline std::string file_of(const void* address) {
  Dl_info info;
  return dladdr(address, &info) != 0 ? info.dli_fname : "an unknown file";
}

using VersionFunction = const char* (*)();

[[noreturn]] inline void refuse(const std::string& loaded, const std::string& loaded_version,
                                const std::string& refused, const std::string& why) {
  std::fprintf(
      stderr,
      "ssd_ops: the op library %s, version %s, is loaded already, so %s, version %s, cannot be loaded "
      "into the same process: %s.\n",
      loaded.c_str(), loaded_version.c_str(), refused.c_str(), SSD_OPS_VERSION, why.c_str());
  std::abort();  // a library that is being loaded cannot say no in another way
}

// Ends the process if another file that defines `symbol`, the version function `own`, is loaded. It runs
// before the ops are registered, and torch's answer to a second registration is to end the process too, but
// without a word about the two files.
inline void refuse_a_second_copy(const char* symbol, VersionFunction own) {
  std::vector<std::string> paths;
  const auto collect = [](dl_phdr_info* info, size_t, void* found) {
    if (std::strstr(info->dlpi_name, "ssd_ops") != nullptr)
      static_cast<std::vector<std::string>*>(found)->push_back(info->dlpi_name);
    return 0;
  };
  dl_iterate_phdr(collect, &paths);
  for (const std::string& path : paths) {
    void* const handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    const auto other = reinterpret_cast<VersionFunction>(dlsym(handle, symbol));
    dlclose(handle);
    if (other != nullptr && other != own)
      refuse(file_of(reinterpret_cast<const void*>(other)), other(),
             file_of(reinterpret_cast<const void*>(own)), "keep one of the two");
  }
}

}  // namespace ssd_ops
