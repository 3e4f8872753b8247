// The threaded products: what Python's `linear` and `int8_linear` call. The prepared encoder calls
// GemmKernels' range functions itself, inside its own tasks.
#pragma once

#include "cpu/ops/gemm.h"

namespace fastbert {

// out = activation(x @ W^T + bias) + residual over packed float weights of `packed_size` bytes.
// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void linear(const GemmArgs& args, index_t packed_size);

// The same over packed int8 weights: x is float32, bfloat16 or float16, and is quantised row by row
// (quantize.h) on the way in. args.w_scale: (n); x_scale, x_zero_point and range must be null.
void int8_linear(const GemmArgs& args, index_t packed_size);

}  // namespace fastbert
