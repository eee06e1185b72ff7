// libssd_ops.so beside its ops: its version and the facts of its build.
#include "common/module.h"

#include <torch/headeronly/version.h>

extern "C" const char* ssd_ops_version() {
  return SSD_OPS_VERSION;
}

extern "C" const char* ssd_ops_build_info() {
#if defined(__clang__)
#define SSD_OPS_COMPILER "clang " __clang_version__
#else
#define SSD_OPS_COMPILER "g++ " __VERSION__
#endif
  static const std::string info = "{\"torch\": \"" SSD_OPS_TEXT(TORCH_VERSION_MAJOR) "." SSD_OPS_TEXT(
                                      TORCH_VERSION_MINOR) "\", \"torch_target\": \"" SSD_OPS_TARGET
                                                           "\", \"compiler\": \"" SSD_OPS_COMPILER
                                                           "\", \"cxx\": " +
                                  std::to_string(__cplusplus) + "}";
  return info.c_str();
}

// 101 is the first priority that is not the compiler's own: the registrations come after.
__attribute__((constructor(101))) static void check_process() {
  ssd_ops::refuse_a_second_copy("ssd_ops_version", &ssd_ops_version);
}
