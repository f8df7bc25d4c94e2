# generated/version_generated.h: what core/version.cpp reports. Made anew when HEAD moves.

set(PAPERLAB_COMMIT "unknown")
find_package(Git QUIET)
if(GIT_FOUND AND EXISTS ${PROJECT_SOURCE_DIR}/.git)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${PROJECT_SOURCE_DIR} rev-parse --short=12 HEAD
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${PROJECT_SOURCE_DIR} diff HEAD
    OUTPUT_VARIABLE difference ERROR_QUIET)
  if(NOT failed)
    set(PAPERLAB_COMMIT ${commit})
    if(difference)
      string(SHA1 hash "${difference}")
      string(SUBSTRING ${hash} 0 8 hash)
      string(APPEND PAPERLAB_COMMIT "-dirty.${hash}")
    endif()
  endif()
  if(EXISTS ${PROJECT_SOURCE_DIR}/.git/logs/HEAD)
    set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY
      CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/.git/logs/HEAD)
  endif()
endif()

string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
list(JOIN PAPERLAB_CXX_FLAGS " " PAPERLAB_FLAGS_TEXT)
string(STRIP "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}} ${PAPERLAB_FLAGS_TEXT}"
  PAPERLAB_FLAGS_TEXT)
configure_file(${CMAKE_CURRENT_LIST_DIR}/version_generated.h.in
  ${PROJECT_BINARY_DIR}/generated/version_generated.h @ONLY)
