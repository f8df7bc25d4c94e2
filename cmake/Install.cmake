# Two components: `cpp`, headers and libpaperlab.so with its CMake package, and `python`, the
# compiled part of the wheel (scikit-build-core adds the Python files).

include(CMakePackageConfigHelpers)
set(package_dir lib/cmake/paperlab)

# A wheel stands beside torch in site-packages; an installed tree remembers where torch was.
if(SKBUILD)
  set(rpath "$ORIGIN/../torch/lib")
else()
  set(rpath "${PAPERLAB_TORCH}/torch/lib")
endif()
set_target_properties(paperlab _core PROPERTIES INSTALL_RPATH "$ORIGIN;${rpath}")

install(DIRECTORY libpaperlab/paperlab DESTINATION include COMPONENT cpp
  FILES_MATCHING PATTERN "*.h" PATTERN "*_internal.h" EXCLUDE)
install(TARGETS paperlab EXPORT paperlabTargets LIBRARY DESTINATION lib COMPONENT cpp)
install(EXPORT paperlabTargets NAMESPACE paperlab:: DESTINATION ${package_dir} COMPONENT cpp)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/paperlabConfig.cmake.in
  ${PROJECT_BINARY_DIR}/generated/paperlabConfig.cmake INSTALL_DESTINATION ${package_dir}
  NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/generated/paperlabConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/generated/paperlabConfig.cmake
  ${PROJECT_BINARY_DIR}/generated/paperlabConfigVersion.cmake ${CMAKE_CURRENT_LIST_DIR}/Torch.cmake
  DESTINATION ${package_dir} COMPONENT cpp)

install(TARGETS paperlab _core
  LIBRARY DESTINATION paperlab COMPONENT python EXCLUDE_FROM_ALL)
install(FILES ${PAPERLAB_PYTHON_DIR}/torch_version.txt
  DESTINATION paperlab COMPONENT python EXCLUDE_FROM_ALL)
