// out = activation(x + bias).
#pragma once

#include "common/types.h"
#include "cpu/ops/params.h"

namespace fastbert {

struct ActArgs {
    const void* x = nullptr;  // (rows, columns) of dtype
    void* out = nullptr;      // (rows, columns) of dtype; may be x itself
    Param bias;               // (columns), or absent
    index_t rows = 0;
    index_t columns = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    index_t out_stride = 0;
    DType dtype = DType::f32;
    Activation activation = Activation::none;
    ActivationParams activation_params;
};

struct ActKernels {
    // Rows [first, first + count). Indexed by DType: f32, bf16, f16.
    void (*rows[3])(const ActArgs& args, const float* bias, index_t first, index_t count);
};

// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void bias_act(const ActArgs& args);

}  // namespace fastbert
