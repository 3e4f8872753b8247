#include "cpu/vec/scalar.h"

#define FASTBERT_KERNEL_TABLE kernels_scalar
#include "cpu/isa/table.inl"
