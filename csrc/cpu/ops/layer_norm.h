// out = LayerNorm(activation(x + x_bias) + residual) * weight + bias, row by row:
// bias, activation, residual and normalisation in one pass over memory.
#pragma once

#include "common/types.h"
#include "cpu/ops/params.h"

namespace fastbert {

struct LayerNormArgs {
    const void* x = nullptr;         // (rows, hidden) of dtype
    const void* residual = nullptr;  // (rows, hidden) of dtype, or null
    void* out = nullptr;             // (rows, hidden) of dtype; may be x or residual itself
    void* sum = nullptr;             // what was normalised, rounded to dtype; or null
    Param x_bias;                    // (hidden), or absent
    Param weight;                    // (hidden)
    Param bias;                      // (hidden)
    index_t rows = 0;
    index_t hidden = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    index_t residual_stride = 0;
    index_t out_stride = 0;
    index_t sum_stride = 0;
    DType dtype = DType::f32;
    Activation activation = Activation::none;
    ActivationParams activation_params;
    float eps = 0;
};

// float32 parameters of a normalisation, for the kernels.
struct NormParams {
    const float* weight;
    const float* bias;
    float eps;
};

struct LayerNormKernels {
    // Rows [first, first + count); scratch holds `hidden` floats. Indexed by DType: f32, bf16, f16.
    void (*rows[3])(const LayerNormArgs& args, const float* x_bias, const NormParams& norm,
                    index_t first, index_t count, float* scratch);
};

// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void layer_norm(const LayerNormArgs& args);

}  // namespace fastbert
