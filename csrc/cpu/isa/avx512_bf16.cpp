#include "cpu/vec/avx512.h"

#define FASTBERT_ISA avx512_bf16
#include "cpu/isa/op.inl"
