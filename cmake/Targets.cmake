# Flags once, and the functions that declare kernels, modules and papers.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
add_link_options(-Wl,--build-id=sha1)  # core/version.h: program_id()
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(PAPERLAB_PYTHON_DIR ${PROJECT_BINARY_DIR}/python/paperlab)

find_program(PAPERLAB_CCACHE ccache)
if(PAPERLAB_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${PAPERLAB_CCACHE})
endif()

# -ffp-contract=off: a fused multiply-add is written where it is meant, so that every instruction
# set and compiler gives the same bits.
set(PAPERLAB_CXX_FLAGS -Wall -Wextra -Wpedantic -Werror -ffp-contract=off)
if(NOT PAPERLAB_WERROR)
  list(REMOVE_ITEM PAPERLAB_CXX_FLAGS -Werror)
endif()
if(PAPERLAB_SANITIZE)
  # GCC 12 reports uninitialized values in its own headers under sanitizers. Null pointers and ends
  # of objects are the address sanitizer's to find; asked for twice they cost a sixth of the build.
  list(APPEND PAPERLAB_CXX_FLAGS -fsanitize=${PAPERLAB_SANITIZE} -fno-sanitize-recover=all
    -fno-sanitize=null,object-size,vptr
    -fno-omit-frame-pointer -Wno-maybe-uninitialized)
  add_link_options(-fsanitize=${PAPERLAB_SANITIZE})
endif()

add_library(paperlab_flags INTERFACE)
target_compile_options(paperlab_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${PAPERLAB_CXX_FLAGS}>")
# The compiler collects its own garbage from 512 MiB on: 5 to 10 % less to compile.
target_compile_options(paperlab_flags INTERFACE "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:\
--param=ggc-min-expand=100;--param=ggc-min-heapsize=524288>")
target_include_directories(paperlab_flags INTERFACE
  ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/libpaperlab)

set(PAPERLAB_ISA_FLAGS_generic "")
set(PAPERLAB_ISA_FLAGS_avx2 -mavx2 -mfma)
set(PAPERLAB_ISA_FLAGS_avx512 -mavx2 -mfma -mavx512f -mavx512dq -mavx512vl -mavx512bw)
set(PAPERLAB_ISA_FLAGS_bfloat16 ${PAPERLAB_ISA_FLAGS_avx512} -mavx512bf16)

# Stops with the missing file's name: a kernel or paper is complete or not there.
function(paperlab_require what)
  foreach(file IN LISTS ARGN)
    if(NOT EXISTS ${PROJECT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "${what} needs the file ${file}")
    endif()
  endforeach()
endfunction()

# paperlab_lightly_optimized(<targets>...): what calls the library and computes little itself; a
# fifth to a quarter less to compile.
function(paperlab_lightly_optimized)
  foreach(target IN LISTS ARGN)
    target_compile_options(${target} PRIVATE
      "$<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>")
  endforeach()
endfunction()

# paperlab_precompile(tensor|operator|json <targets>...): cmake/<set>_headers.h is parsed once for
# their sources: half of the time of those that include LibTorch. What a set's headers instantiate is
# compiled in each source that has the set, a second for `tensor` and two for `operator`, which is
# for what registers operators alone. The compiler takes headers only with the options that they were
# compiled with, so programs are position-independent as the library is.
function(paperlab_precompile set)
  set(headers ${set}_headers)
  if(NOT TARGET ${headers})
    add_library(${headers} OBJECT ${PROJECT_SOURCE_DIR}/cmake/${headers}.cpp)
    target_link_libraries(${headers} PRIVATE paperlab_flags)
    if(set STREQUAL "json")
      target_link_libraries(${headers} PRIVATE nlohmann_json::nlohmann_json)
    else()
      target_link_libraries(${headers} PRIVATE paperlab::torch)
    endif()
    target_precompile_headers(${headers} PRIVATE ${PROJECT_SOURCE_DIR}/cmake/${headers}.h)
    target_compile_options(${headers} PRIVATE -fpch-preprocess)  # asked for by ccache
  endif()
  foreach(target IN LISTS ARGN)
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "EXECUTABLE")
      set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-fPIC>")
    endif()
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>")
    target_precompile_headers(${target} REUSE_FROM ${headers})
  endforeach()
endfunction()

# paperlab_join(<targets>...): under sanitizers a target's sources are compiled six at a time, since
# what each of them instantiates of the JSON library is then most of its time. A source whose names
# clash with another's is left out with SKIP_UNITY_BUILD_INCLUSION.
function(paperlab_join)
  if(PAPERLAB_SANITIZE)
    set_target_properties(${ARGN} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 6)
  endif()
endfunction()

# paperlab_objects(<target> [TORCH [REGISTERS]] <sources>...): an object library that becomes part of
# libpaperlab.so and, unless TORCH, of the torch-free static library. REGISTERS: operators.
function(paperlab_objects target)
  cmake_parse_arguments(ARG "TORCH;REGISTERS" "" "" ${ARGN})
  add_library(${target} OBJECT ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${target} PRIVATE paperlab_flags)
  if(ARG_TORCH)
    target_link_libraries(${target} PRIVATE paperlab::torch)
    if(ARG_REGISTERS)
      paperlab_precompile(operator ${target})
    else()
      paperlab_precompile(tensor ${target})
    endif()
    set_property(GLOBAL APPEND PROPERTY PAPERLAB_TORCH_OBJECTS ${target})
  else()
    set_property(GLOBAL APPEND PROPERTY PAPERLAB_FREE_OBJECTS ${target})
  endif()
endfunction()

# The copy of kernels/<kernel>/<source> for an instruction set; it lies in the namespace `name`.
function(paperlab_isa_objects kernel source isa name)
  paperlab_objects(kernel_${kernel}_${isa} ${kernel}/${source})
  target_compile_definitions(kernel_${kernel}_${isa} PRIVATE PAPERLAB_ISA=${name})
  # -O3 unrolls the polynomial of exp: 1.7 times the speed of -O2 on a fold step.
  target_compile_options(kernel_${kernel}_${isa} PRIVATE
    $<$<CONFIG:Release>:-O3> ${PAPERLAB_ISA_FLAGS_${isa}})
endfunction()

# paperlab_add_kernel(<kernel> BACKENDS cpu [bfloat16] [cuda] [SOURCES <file>...]): kernels/<kernel>/
# with the dispatch file, the reference, further sources of the host, cpu.cpp once per instruction
# set, cpu_bfloat16.cpp for CPUs that multiply bfloat16, cuda.cu if declared and found.
function(paperlab_add_kernel kernel)
  cmake_parse_arguments(ARG "" "" "BACKENDS;SOURCES" ${ARGN})
  list(TRANSFORM ARG_SOURCES PREPEND ${kernel}/)
  set(dir kernels/${kernel})
  paperlab_require("kernel ${kernel}" ${dir}/${kernel}.h ${dir}/${kernel}.cpp ${dir}/reference.cpp
    ${dir}/README.md tests/kernels/${kernel}_test.cpp bench/kernels/${kernel}_bench.cpp)
  paperlab_objects(kernel_${kernel} ${kernel}/${kernel}.cpp ${kernel}/reference.cpp ${ARG_SOURCES})
  if(cpu IN_LIST ARG_BACKENDS)
    paperlab_require("kernel ${kernel}" ${dir}/cpu.h ${dir}/cpu.cpp)
    foreach(isa generic avx2 avx512)
      paperlab_isa_objects(${kernel} cpu.cpp ${isa} ${isa})
    endforeach()
  endif()
  if(bfloat16 IN_LIST ARG_BACKENDS)
    paperlab_require("kernel ${kernel}" ${dir}/cpu_bfloat16.cpp)
    paperlab_isa_objects(${kernel} cpu_bfloat16.cpp bfloat16 avx512)
  endif()
  if(cuda IN_LIST ARG_BACKENDS)
    paperlab_require("kernel ${kernel}" ${dir}/cuda.h ${dir}/cuda.cu)
    if(PAPERLAB_HAS_CUDA)
      target_sources(kernel_${kernel} PRIVATE ${kernel}/cuda.cu)
      target_compile_options(kernel_${kernel} PRIVATE
        "$<$<COMPILE_LANGUAGE:CUDA>:${PAPERLAB_CUDA_FLAGS}>")
    endif()
  endif()
endfunction()

# paperlab_add_driver(<name> [SOURCES <file>...]): main.cpp and the other sources of
# experiments/<name>.
function(paperlab_add_driver paper)
  cmake_parse_arguments(ARG "" "" "SOURCES" ${ARGN})
  list(TRANSFORM ARG_SOURCES PREPEND ${paper}/)
  string(REPLACE "_" "-" name ${paper})
  paperlab_require("driver ${paper}" experiments/${paper}/main.cpp experiments/${paper}/config.json
    experiments/${paper}/README.md)
  add_executable(driver_${paper} ${paper}/main.cpp ${ARG_SOURCES})
  set_target_properties(driver_${paper} PROPERTIES OUTPUT_NAME ${name})
  target_link_libraries(driver_${paper} PRIVATE paperlab_flags paperlab_experiments paperlab_library)
  paperlab_lightly_optimized(driver_${paper})
  add_dependencies(paperlab_run driver_${paper})
endfunction()

# paperlab_add_paper(<paper> [SOURCES <file>...]): what every paper has: a module, declared in
# libpaperlab, and a driver.
function(paperlab_add_paper paper)
  set(python bindings/python/paperlab/${paper})  # a package or a module
  if(NOT IS_DIRECTORY ${PROJECT_SOURCE_DIR}/${python})
    string(APPEND python .py)
  endif()
  paperlab_require("paper ${paper}" libpaperlab/paperlab/${paper} tests/paperlab/${paper}
    ${python} bindings/src/${paper}.cpp)
  paperlab_add_driver(${paper} ${ARGN})
endfunction()
