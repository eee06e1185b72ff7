# find_package(ssd_ops CONFIG REQUIRED) defines the target ssd_ops::ssd_ops: the header, the libraries, and torch.
# CMAKE_PREFIX_PATH is what `python -m ssd_ops info --cmake` prints. docs/deploy.md has a project.

get_filename_component(_ssd_ops_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

include(CMakeFindDependencyMacro)
# The torch that this package is installed beside, if the project names no other.
find_dependency(Torch HINTS "${_ssd_ops_prefix}/../torch/share/cmake")

if(NOT TARGET ssd_ops::ssd_ops)
  add_library(ssd_ops::ssd_ops SHARED IMPORTED)
  set_target_properties(ssd_ops::ssd_ops PROPERTIES
    IMPORTED_LOCATION "${_ssd_ops_prefix}/lib/libssd_ops.so"
    IMPORTED_SONAME libssd_ops.so
    INTERFACE_INCLUDE_DIRECTORIES "${_ssd_ops_prefix}/include"
    INTERFACE_LINK_LIBRARIES "${TORCH_LIBRARIES}"
    # A program may call the ops only through torch's dispatcher, or in a compiled model: it then needs no symbol
    # of the library, and the linker would leave it out.
    INTERFACE_LINK_OPTIONS "LINKER:--no-as-needed")
  target_compile_features(ssd_ops::ssd_ops INTERFACE cxx_std_17)

  # The CUDA kernels need a torch with CUDA.
  if(TARGET torch_cuda AND EXISTS "${_ssd_ops_prefix}/lib/libssd_ops_cuda.so")
    add_library(ssd_ops::cuda SHARED IMPORTED)
    set_target_properties(ssd_ops::cuda PROPERTIES
      IMPORTED_LOCATION "${_ssd_ops_prefix}/lib/libssd_ops_cuda.so"
      IMPORTED_SONAME libssd_ops_cuda.so)
    set_property(TARGET ssd_ops::ssd_ops APPEND PROPERTY INTERFACE_LINK_LIBRARIES ssd_ops::cuda)
  endif()
endif()
unset(_ssd_ops_prefix)
