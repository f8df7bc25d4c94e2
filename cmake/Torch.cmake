# paperlab::torch: LibTorch from the Python wheel, as one imported target of our own. The wheel's own
# CMake package demands a CUDA toolkit and changes global flags, so it is not used. Also included by
# the installed package, where PAPERLAB_TORCH is the folder recorded at build time or the user's.

if(NOT PAPERLAB_TORCH AND DEFINED ENV{PAPERLAB_TORCH})
  set(PAPERLAB_TORCH "$ENV{PAPERLAB_TORCH}")
endif()
if(NOT PAPERLAB_TORCH AND PAPERLAB_TORCH_DEFAULT)
  set(PAPERLAB_TORCH "${PAPERLAB_TORCH_DEFAULT}")
endif()
if(NOT PAPERLAB_TORCH)
  find_package(Python3 3.11 QUIET COMPONENTS Interpreter)
  if(Python3_Interpreter_FOUND)
    execute_process(  # finds the folder without importing torch
      COMMAND ${Python3_EXECUTABLE} -c
        "import importlib.util as u, os; s = u.find_spec('torch'); print(os.path.dirname(os.path.dirname(s.origin)) if s else '')"
      OUTPUT_VARIABLE PAPERLAB_TORCH OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
if(NOT EXISTS "${PAPERLAB_TORCH}/torch/lib/libtorch_cpu.so")
  set(PAPERLAB_TORCH_MESSAGE "paperlab needs torch >= 2.11: set PAPERLAB_TORCH to the folder that holds torch/ (looked in '${PAPERLAB_TORCH}')")
else()
  file(STRINGS "${PAPERLAB_TORCH}/torch/version.py" _paperlab_line REGEX "^__version__ *[:=]")
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+[^'\" ]*" PAPERLAB_TORCH_VERSION "${_paperlab_line}")
  string(REGEX MATCH "^[0-9.]+" _paperlab_number "${PAPERLAB_TORCH_VERSION}")
  if(_paperlab_number VERSION_LESS 2.11)
    set(PAPERLAB_TORCH_MESSAGE "paperlab needs torch >= 2.11, got ${PAPERLAB_TORCH_VERSION} in '${PAPERLAB_TORCH}'")
  endif()
endif()
if(PAPERLAB_TORCH_MESSAGE)
  if(CMAKE_FIND_PACKAGE_NAME)
    set(${CMAKE_FIND_PACKAGE_NAME}_FOUND FALSE)
    set(${CMAKE_FIND_PACKAGE_NAME}_NOT_FOUND_MESSAGE "${PAPERLAB_TORCH_MESSAGE}")
    return()
  endif()
  message(FATAL_ERROR "${PAPERLAB_TORCH_MESSAGE}")
endif()

if(NOT TARGET paperlab::torch)
  set(_paperlab_lib "${PAPERLAB_TORCH}/torch/lib")
  add_library(paperlab::torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(paperlab::torch SYSTEM INTERFACE
    "${PAPERLAB_TORCH}/torch/include" "${PAPERLAB_TORCH}/torch/include/torch/csrc/api/include")
  # The runtime of at::parallel_for: the wheel's, since a process must have one only.
  file(GLOB _paperlab_openmp "${_paperlab_lib}/libgomp*.so*")
  # In this order, kept even where no symbol is used: libpaperlab.so finds them already loaded.
  target_link_libraries(paperlab::torch INTERFACE
    -Wl,--push-state,--no-as-needed "${_paperlab_lib}/libtorch_cpu.so" "${_paperlab_lib}/libc10.so"
    ${_paperlab_openmp} -Wl,--pop-state)
  target_link_options(paperlab::torch INTERFACE "-Wl,--allow-shlib-undefined")
endif()
