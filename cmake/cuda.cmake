# Decides whether csrc/cuda is compiled, and compiles it into its own extension (fastbert/_cuda).
# Only a compiler is looked for, never a GPU: what the build host has is not what the user has.

string(TOLOWER "${FASTBERT_CUDA}" FASTBERT_CUDA)
if(NOT FASTBERT_CUDA MATCHES "^(on|off|auto)$")
  message(FATAL_ERROR "FASTBERT_CUDA is \"${FASTBERT_CUDA}\"; it must be on, off or auto.")
endif()

file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu csrc/cuda/*.cpp)
set(FASTBERT_CUDA_DESCRIPTION "no: FASTBERT_CUDA=off when it was built")
if(NOT FASTBERT_CUDA STREQUAL "off")
  include(cmake/nvcc.cmake)
  if(NOT FASTBERT_NVCC AND FASTBERT_CUDA STREQUAL "on")
    message(FATAL_ERROR
      "FASTBERT_CUDA=on, but no CUDA compiler was found: neither on PATH nor in CUDA_HOME, CUDA_PATH "
      "or /usr/local/cuda. Install the CUDA toolkit (nvcc), or build with FASTBERT_CUDA=off.")
  elseif(NOT FASTBERT_NVCC)
    set(FASTBERT_CUDA_DESCRIPTION "no: no CUDA compiler was found when it was built")
  elseif(NOT cuda_sources OR NOT FASTBERT_PYTHON)
    set(FASTBERT_CUDA_DESCRIPTION "no: this source tree has no csrc/cuda")
  else()
    set(CMAKE_CUDA_COMPILER ${FASTBERT_NVCC})
    set(CMAKE_CUDA_ARCHITECTURES ${FASTBERT_CUDA_ARCHITECTURES})
    enable_language(CUDA)
    string(REPLACE ";" " " FASTBERT_CUDA_DESCRIPTION "${FASTBERT_CUDA_ARCHITECTURES}")
    set(FASTBERT_CUDA_DESCRIPTION
      "yes: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${FASTBERT_CUDA_DESCRIPTION}")
  endif()
endif()
message(STATUS "CUDA kernels: ${FASTBERT_CUDA_DESCRIPTION}")

function(fastbert_add_cuda_module)
  file(GLOB common_sources CONFIGURE_DEPENDS csrc/common/*.cpp)
  pybind11_add_module(_cuda MODULE NO_EXTRAS ${cuda_sources} ${common_sources})
  target_include_directories(_cuda PRIVATE csrc ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_features(_cuda PRIVATE cxx_std_17 cuda_std_17)
  set_target_properties(_cuda PROPERTIES
    CUDA_RUNTIME_LIBRARY Static
    CUDA_VISIBILITY_PRESET hidden
    LIBRARY_OUTPUT_DIRECTORY ${FASTBERT_OUTPUT_DIR})
endfunction()
