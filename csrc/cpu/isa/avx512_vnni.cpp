#include "cpu/vec/avx512.h"

#define FASTBERT_ISA avx512_vnni
#include "cpu/isa/op.inl"
