# The version, from its one place.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/../../../version.py" _ssd_ops_line REGEX "__version__")
string(REGEX REPLACE ".*\"(.+)\".*" "\\1" PACKAGE_VERSION "${_ssd_ops_line}")
unset(_ssd_ops_line)

# Before 1.0 a minor version may change the interface.
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _ssd_ops_series "${PACKAGE_VERSION}")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION
   OR NOT "${PACKAGE_FIND_VERSION}." MATCHES "^${_ssd_ops_series}\\.|^${PACKAGE_FIND_VERSION_MAJOR}\\.$")
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
unset(_ssd_ops_series)
