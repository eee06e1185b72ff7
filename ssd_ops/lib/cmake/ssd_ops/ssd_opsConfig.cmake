# find_package(ssd_ops CONFIG REQUIRED) defines the target ssd_ops::ssd_ops: the header, the libraries, and torch.
# CMAKE_PREFIX_PATH is what `python -m ssd_ops info --cmake` prints. docs/deploy.md has a project.

get_filename_component(_ssd_ops_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET ssd_ops::torch)
  add_library(ssd_ops::torch INTERFACE IMPORTED)
  if(TARGET torch)
    # The project has called find_package(Torch).
    set_target_properties(ssd_ops::torch PROPERTIES INTERFACE_LINK_LIBRARIES "${TORCH_LIBRARIES}")
    set(_ssd_ops_cuda ${TORCH_CUDA_LIBRARIES})
  else()
    # The same libraries without find_package(Torch): of a torch with CUDA, that wants the whole CUDA toolkit, and a
    # program that calls torch needs none of it. The last folder is the torch that this package is installed beside.
    foreach(_ssd_ops_at ${Torch_DIR} ${CMAKE_PREFIX_PATH} $ENV{CMAKE_PREFIX_PATH} "${_ssd_ops_prefix}/../torch")
      foreach(_ssd_ops_up "" "/../.." "/../../..")  # libtorch itself, its share/cmake, or its share/cmake/Torch
        get_filename_component(_ssd_ops_root "${_ssd_ops_at}${_ssd_ops_up}" ABSOLUTE)
        if(NOT _ssd_ops_torch AND EXISTS "${_ssd_ops_root}/include/torch/csrc/stable/tensor.h")
          set(_ssd_ops_torch "${_ssd_ops_root}")
        endif()
      endforeach()
    endforeach()
    if(NOT _ssd_ops_torch)
      set(ssd_ops_FOUND FALSE)
      set(ssd_ops_NOT_FOUND_MESSAGE
        "torch 2.11 or later is not below CMAKE_PREFIX_PATH; `python -m ssd_ops info --cmake` prints what belongs there")
      return()
    endif()
    set(_ssd_ops_libraries "")
    foreach(_ssd_ops_name torch torch_cpu c10 torch_cuda c10_cuda)
      if(EXISTS "${_ssd_ops_torch}/lib/lib${_ssd_ops_name}.so")
        list(APPEND _ssd_ops_libraries "${_ssd_ops_torch}/lib/lib${_ssd_ops_name}.so")
      endif()
    endforeach()
    set_target_properties(ssd_ops::torch PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES
        "${_ssd_ops_torch}/include;${_ssd_ops_torch}/include/torch/csrc/api/include"
      INTERFACE_LINK_LIBRARIES "${_ssd_ops_libraries}")
    string(FIND "${_ssd_ops_libraries}" "torch_cuda" _ssd_ops_cuda)
    if(_ssd_ops_cuda EQUAL -1)
      unset(_ssd_ops_cuda)
    endif()
  endif()
endif()

if(NOT TARGET ssd_ops::ssd_ops)
  add_library(ssd_ops::ssd_ops SHARED IMPORTED)
  set_target_properties(ssd_ops::ssd_ops PROPERTIES
    IMPORTED_LOCATION "${_ssd_ops_prefix}/lib/libssd_ops.so"
    IMPORTED_SONAME libssd_ops.so
    INTERFACE_INCLUDE_DIRECTORIES "${_ssd_ops_prefix}/include"
    INTERFACE_LINK_LIBRARIES ssd_ops::torch
    # A program may call the ops only through torch's dispatcher, or in a compiled model: it then needs no symbol
    # of the library, and the linker would leave it out.
    INTERFACE_LINK_OPTIONS "LINKER:--no-as-needed"
    INTERFACE_COMPILE_FEATURES cxx_std_17)

  # The CUDA kernels need a torch with CUDA.
  if(_ssd_ops_cuda AND EXISTS "${_ssd_ops_prefix}/lib/libssd_ops_cuda.so")
    add_library(ssd_ops::cuda SHARED IMPORTED)
    set_target_properties(ssd_ops::cuda PROPERTIES
      IMPORTED_LOCATION "${_ssd_ops_prefix}/lib/libssd_ops_cuda.so"
      IMPORTED_SONAME libssd_ops_cuda.so)
    set_target_properties(ssd_ops::ssd_ops PROPERTIES
      INTERFACE_LINK_LIBRARIES "ssd_ops::torch;ssd_ops::cuda")
  endif()
endif()

foreach(_ssd_ops_name prefix cuda at up root torch libraries name)
  unset(_ssd_ops_${_ssd_ops_name})
endforeach()
