// The threaded gemms: what Python's `linear` and `int8_linear` call. The prepared encoder calls
// GemmKernels' range functions itself, inside its own tasks.
#pragma once

#include "cpu/ops/gemm.h"
#include "cpu/ops/quantize.h"

namespace fastbert {

// out = activation(x @ W^T + bias) + residual over packed float weights of `packed_size` bytes.
// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void linear(const GemmArgs& args, index_t packed_size);

// The same over packed int8 weights, args.w_scale: (n). A float32, bfloat16 or float16 x is
// quantised row by row (quantize.h) on the way in; x_scale and x_zero_point must then be null. A
// uint8 x was quantised before, and they say how. args.k counts the columns of x; the packed
// weights have columns.repeats more. `columns` are for a floating x only.
void int8_linear(const GemmArgs& args, index_t packed_size, const InputColumns& columns = {});

}  // namespace fastbert
