#include "cpu/vec/avx2.h"

#define FASTBERT_KERNEL_TABLE kernels_avx2
#include "cpu/isa/table.inl"
