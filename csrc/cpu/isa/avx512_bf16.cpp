#include "cpu/vec/avx512.h"

#define FASTBERT_KERNEL_TABLE kernels_avx512_bf16
#include "cpu/isa/table.inl"
