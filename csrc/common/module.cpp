// The Python module ssd_ops._C. Importing it loads the library, and loading registers the ops.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#define SSD_OPS_TEXT_(x) #x
#define SSD_OPS_TEXT(x) SSD_OPS_TEXT_(x)

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = SSD_OPS_TEXT(TORCH_VERSION_MAJOR) "." SSD_OPS_TEXT(TORCH_VERSION_MINOR);
  info["torch_target"] = SSD_OPS_TARGET;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
  info["cxx"] = static_cast<long>(__cplusplus);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of ssd_ops; importing registers them as torch.ops.ssd_ops.*";
  m.def("build_info", &build_info, "Versions and compiler of this build.");
}
