// out = s / sqrt(mean(s^2) + eps) * weight for s = x + residual, row by row, in float32.
#pragma once

#include "common/types.h"
#include "cpu/ops/params.h"

namespace fastbert {

struct RmsNormArgs {
    const void* x = nullptr;         // (rows, hidden) of dtype
    const void* residual = nullptr;  // (rows, hidden) of dtype, or null
    void* out = nullptr;             // (rows, hidden) of dtype; may be x or residual itself
    void* sum = nullptr;             // (rows, hidden) of dtype: s, or null; may be x or residual
    Param weight;                    // (hidden)
    index_t rows = 0;
    index_t hidden = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    index_t residual_stride = 0;
    index_t out_stride = 0;
    index_t sum_stride = 0;
    DType dtype = DType::f32;
    float eps = 0;
};

struct RmsNormKernels {
    // Rows [first, first + count); scratch holds `hidden` floats. Indexed by DType: f32, bf16, f16.
    void (*rows[3])(const RmsNormArgs& args, const float* weight, index_t first, index_t count,
                    float* scratch);
};

// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void rms_norm(const RmsNormArgs& args);

}  // namespace fastbert
