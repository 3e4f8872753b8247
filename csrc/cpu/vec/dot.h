// The inner steps of the gemm, per instruction set. A tile kernel (ops/gemm_tile.inl)
// broadcasts one word of a row of x (Left), loads one word of 2 * kLanes columns (two
// Rights) and calls step(). Interface of a dot type D:
//
//   D::kRows       rows of the largest tile whose sums, with two vectors of columns, fit registers
//   D::kLanes      columns in a vector; a panel is two vectors wide
//   D::kGroup      elements of K in a word of x
//   D::kLaneBytes  bytes of packed weight in a word of one column
//   D::kChunk      words summed in registers before they are added to the running sum
//   D::kStagedX    x must be staged first: u8 as 16-bit integers, bf16 as f32
//   D::kWordBytes  bytes of x, as it is staged, in a word
//   D::kWide       few rows take several panels at once, to keep enough sums in flight
//   D::Acc, load/store/add of them (kLanes 4-byte values), zero(), left(p), right(p)
//   D::step(a, b, l, r, s)   adds l times r to the sums a, and l times s to the sums b
#pragma once

#if defined(__AVX512F__)
#include "cpu/vec/dot_avx512.h"
#elif defined(__AVX2__)
#include "cpu/vec/dot_avx2.h"
#else
#include "cpu/vec/dot_scalar.h"
#endif
