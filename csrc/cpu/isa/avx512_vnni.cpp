#include "cpu/vec/avx512.h"

#define FASTBERT_KERNEL_TABLE kernels_avx512_vnni
#include "cpu/isa/table.inl"
