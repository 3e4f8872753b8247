// The ops over rows: plain descriptions in, kernels on a stream. Device pointers throughout.
// Every function throws std::invalid_argument for a description that does not fit together and
// std::runtime_error when no device can run it; both are sentences. Nothing waits for the device.
#pragma once

#include "common/types.h"

namespace fastbert::cuda {

struct Target {
    int device = 0;
    void* stream = nullptr;  // cudaStream_t
};

// out = LayerNorm(activation(x + x_bias) + residual) * weight + bias. Statistics are float32, the
// variance two-pass over registers. All vectors have the dtype of x.
struct RowNorm {
    const void* x = nullptr;         // (rows, width)
    const void* x_bias = nullptr;    // (width), or null
    const void* residual = nullptr;  // (rows, width), or null
    const void* weight = nullptr;    // (width)
    const void* bias = nullptr;      // (width)
    void* out = nullptr;             // (rows, width)
    void* sum = nullptr;             // what was normalised, rounded; (rows, width) or null
    index_t rows = 0;
    index_t width = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    index_t residual_stride = 0;
    index_t out_stride = 0;  // of sum as well
    DType dtype = DType::f32;
    Activation activation = Activation::none;
    ActivationParams activation_params;
    float eps = 0;
};
void row_norm(const char* op, const RowNorm& args, const Target& target);

// out = activation(x + bias), elementwise.
struct BiasAct {
    const void* x = nullptr;     // (rows, width)
    const void* bias = nullptr;  // (width), or null
    void* out = nullptr;         // (rows, width)
    index_t rows = 0;
    index_t width = 0;
    index_t x_stride = 0;
    index_t out_stride = 0;
    DType dtype = DType::f32;
    Activation activation = Activation::none;
    ActivationParams activation_params;
};
void bias_act(const BiasAct& args, const Target& target);

// out = LayerNorm(sum of table[ids]): up to four gathers, added in order. An id without a row
// makes its token's row NaN; nothing outside a table is read.
struct Gather {
    const std::int64_t* ids = nullptr;  // (tokens); null: ends the list, or a dense first operand
    const void* table = nullptr;        // (entries, width) contiguous
    index_t entries = 0;
};
struct EmbedNorm {
    const void* embeds = nullptr;  // (tokens, width) added first, or null
    Gather gathers[4];
    const void* weight = nullptr;
    const void* bias = nullptr;
    void* out = nullptr;  // (tokens, width) contiguous
    index_t tokens = 0;
    index_t width = 0;
    index_t embeds_stride = 0;
    DType dtype = DType::f32;
    float eps = 0;
};
void embed_norm(const EmbedNorm& args, const Target& target);

// q, scale, zero_point with x ~ scale * (q - zero_point), per row; bit for bit the reference's.
struct QuantizeRows {
    const void* x = nullptr;             // (rows, width)
    std::uint8_t* q = nullptr;           // (rows, width) contiguous
    float* scale = nullptr;              // (rows)
    std::int32_t* zero_point = nullptr;  // (rows)
    index_t rows = 0;
    index_t width = 0;
    index_t x_stride = 0;
    DType dtype = DType::f32;
};
void quantize_rows(const QuantizeRows& args, const Target& target);

}  // namespace fastbert::cuda
