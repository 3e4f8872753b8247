#include "cpu/vec/avx512.h"

#define FASTBERT_ISA amx
#include "cpu/isa/op.inl"
