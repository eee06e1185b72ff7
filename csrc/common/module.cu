// libssd_ops_cuda.so beside its kernels: its version and the facts of its build.
#include "common/module.h"

extern "C" const char* ssd_ops_cuda_version() {
  return SSD_OPS_VERSION;
}

extern "C" const char* ssd_ops_cuda_build_info() {
  return "{\"compiler\": \"nvcc " SSD_OPS_TEXT(__CUDACC_VER_MAJOR__) "." SSD_OPS_TEXT(
      __CUDACC_VER_MINOR__) "\", \"architectures\": \"" SSD_OPS_ARCHITECTURES
                            "\", \"torch_target\": \"" SSD_OPS_TARGET "\"}";
}

__attribute__((constructor(101))) static void check_process() {
  ssd_ops::refuse_a_second_copy("ssd_ops_cuda_version", &ssd_ops_cuda_version);
  // Loaded before this one, which needs it: the file of that name which the loader has found.
  if (std::strcmp(ssd_ops_version(), SSD_OPS_VERSION) != 0)
    ssd_ops::refuse(ssd_ops::file_of(reinterpret_cast<const void*>(&ssd_ops_version)), ssd_ops_version(),
                    ssd_ops::file_of(reinterpret_cast<const void*>(&ssd_ops_cuda_version)),
                    "both must be of one version");
}
