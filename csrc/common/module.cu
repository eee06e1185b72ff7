// The Python module ssd_ops._C_cuda. Importing it loads the library, and loading registers the CUDA kernels
// of the ops that ssd_ops._C has defined.
#include <pybind11/pybind11.h>

#define SSD_OPS_TEXT_(x) #x
#define SSD_OPS_TEXT(x) SSD_OPS_TEXT_(x)

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = "nvcc " SSD_OPS_TEXT(__CUDACC_VER_MAJOR__) "." SSD_OPS_TEXT(__CUDACC_VER_MINOR__);
  info["architectures"] = SSD_OPS_ARCHITECTURES;
  info["torch_target"] = SSD_OPS_TARGET;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of ssd_ops; importing registers them as torch.ops.ssd_ops.*";
  m.def("build_info", &build_info, "Compiler of this build, and the GPUs it is for.");
}
