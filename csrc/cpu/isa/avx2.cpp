#include "cpu/vec/avx2.h"

#define FASTBERT_ISA avx2
#include "cpu/isa/op.inl"
