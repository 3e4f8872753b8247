#include "cpu/vec/scalar.h"

#define FASTBERT_ISA scalar
#include "cpu/isa/op.inl"
