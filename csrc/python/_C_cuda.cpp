// The Python module ssd_ops._C_cuda. Importing it loads libssd_ops_cuda.so, and loading registers the CUDA
// kernels of the ops that libssd_ops.so has defined.
#include <pybind11/pybind11.h>

#include "common/module.h"

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "Loads libssd_ops_cuda.so: the CUDA kernels of torch.ops.ssd_ops.*";
  m.def("build_info", &ssd_ops_cuda_build_info, "Compiler of its build, and the GPUs it is for, as JSON.");
}
