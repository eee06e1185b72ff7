// The Python module ssd_ops._C. Importing it loads libssd_ops.so, and loading registers the ops.
#include <pybind11/pybind11.h>

#include "common/module.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Loads libssd_ops.so: the ops as torch.ops.ssd_ops.*, and their CPU kernels";
  m.def("version", &ssd_ops_version, "The version of the library.");
  m.def("build_info", &ssd_ops_build_info, "Versions and compiler of its build, as JSON.");
  m.def(
      "path", [] { return ssd_ops::file_of(reinterpret_cast<const void*>(&ssd_ops_version)); }, "Its file.");
}
