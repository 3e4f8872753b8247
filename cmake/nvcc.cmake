# Sets FASTBERT_NVCC to the CUDA compiler: the one that CUDACXX names, else nvcc of CUDA_HOME or
# CUDA_PATH, else the one in /usr/local/cuda or on PATH.
#
# With several toolkits on a machine the choice decides which drivers the kernels run on: CUDA 12 asks
# for 525 or later, CUDA 13 for 580. So what is named and not there is an error (or, for auto, no
# compiler at all), never another one.
if(NOT "$ENV{CUDACXX}" STREQUAL "")
  find_program(FASTBERT_NVCC NAMES "$ENV{CUDACXX}")
  set(named "CUDACXX=$ENV{CUDACXX}")
else()
  foreach(variable CUDA_HOME CUDA_PATH)
    if(NOT named AND NOT "$ENV{${variable}}" STREQUAL "")
      find_program(FASTBERT_NVCC nvcc PATHS "$ENV{${variable}}" PATH_SUFFIXES bin NO_DEFAULT_PATH)
      set(named "${variable}=$ENV{${variable}}")
    endif()
  endforeach()
endif()
if(named AND NOT FASTBERT_NVCC AND NOT FASTBERT_CUDA STREQUAL "auto")
  message(FATAL_ERROR
    "${named}, but there is no CUDA compiler. Let CUDACXX name nvcc itself, or CUDA_HOME the folder "
    "above its bin; or unset it.")
endif()
if(NOT named)
  find_program(FASTBERT_NVCC nvcc HINTS /usr/local/cuda/bin)
endif()
