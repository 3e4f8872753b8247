#include "cpu/vec/avx512.h"

#define FASTBERT_ISA avx512
#include "cpu/isa/op.inl"
