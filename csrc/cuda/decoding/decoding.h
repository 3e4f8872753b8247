// The ops that only models which write text need: plain descriptions in, kernels on a stream.
// Device pointers throughout, as in cuda/ops.h, whose rules for errors hold here too.
#pragma once

#include "common/types.h"
#include "cuda/ops.h"

namespace fastbert::cuda {

// out = s / sqrt(mean(s^2) + eps) * weight for s = x + residual, in float32, rounded once. A row is
// read once: about four operations for each element that is read, so reading is what takes time.
struct RmsNorm {
    const void* x = nullptr;         // (rows, width)
    const void* residual = nullptr;  // (rows, width), or null
    const void* weight = nullptr;    // (width)
    void* out = nullptr;             // (rows, width)
    void* sum = nullptr;             // s, rounded; (rows, width) or null
    index_t rows = 0;
    index_t width = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    index_t residual_stride = 0;
    index_t out_stride = 0;  // of sum as well
    DType dtype = DType::f32;
    float eps = 0;
};
void rms_norm(const RmsNorm& args, const Target& target);

// out = xIELU of every element, in float32, rounded once: with p = softplus(alpha_p) and n = beta +
// softplus(alpha_n), p x^2 + beta x where x > 0, else n (expm1(min(x, eps)) - x) + beta x. The
// numbers stay on the device, so that nothing waits for their values.
struct Xielu {
    const void* x = nullptr;        // (rows, width)
    const void* alpha_p = nullptr;  // one element each, of dtype
    const void* alpha_n = nullptr;
    const void* beta = nullptr;
    const void* eps = nullptr;
    void* out = nullptr;  // (rows, width)
    index_t rows = 0;
    index_t width = 0;
    index_t x_stride = 0;
    index_t out_stride = 0;
    DType dtype = DType::f32;
};
void xielu(const Xielu& args, const Target& target);

// Heads of tokens: element i of head h of token t is data[t * stride + h * head + i].
struct Heads {
    void* data = nullptr;
    index_t stride = 0;
    index_t head = 0;
};

// Every head of q and k divided by its root mean square, times a gain, then rotated by its token's
// angles: elements i and i + dim / 2 are a pair, (a, b) becomes (a cos - b sin, b cos + a sin). In
// float32, rounded once; results may lie where the operands do. Values, where there are any, are
// copied, so that a step writes its keys and values into a cache in the same launch. A head is read
// and written once, about eight operations an element: memory is what takes time.
struct QkNormRope {
    Heads q, k, v;  // v.data null: there is nothing to copy
    Heads q_out, k_out, v_out;
    // (tokens): the rows of k_out and v_out that a token's keys and values go to, or null: its own.
    // A row that is not among cache_size is not written.
    const std::int64_t* cache_rows = nullptr;
    index_t cache_size = 0;
    const void* q_weight = nullptr;  // (dim)
    const void* k_weight = nullptr;  // (dim)
    const float* cos = nullptr;      // (tokens, dim / 2)
    const float* sin = nullptr;
    index_t cos_stride = 0, sin_stride = 0;
    index_t tokens = 0;
    index_t heads = 0, kv_heads = 0;
    index_t dim = 0;
    DType dtype = DType::f32;
    float eps = 0;
};
void qk_norm_rope(const QkNormRope& args, const Target& target);

// A lane holds 16 bytes of each half of a head, and at most a warp shares one.
constexpr index_t max_rope_dim = 256;

// How qk_norm_rope covers a token's heads: `lanes` lanes a head, a power of two.
struct HeadConfig {
    int lanes;
    int heads_per_block;
    unsigned blocks_x;  // tokens
    unsigned blocks_y;  // along the heads

    int threads() const { return lanes * heads_per_block; }
};
// Throws std::invalid_argument for a dim that is odd or above max_rope_dim, or too many tokens.
HeadConfig head_config(const char* op, index_t tokens, index_t heads, index_t dim, DType dtype);

// out = activation((x @ weight.T) * scale[column] + bias) + residual: int8 weights, rows that keep
// their precision, float32 sums, rounded once. A row of which a sum is no finite float32 has NaN
// there; where it holds a NaN or an infinity, that is everywhere.
//
// For a few rows, as steps of decoding have: 2 * rows operations for each byte of the weight, which
// is read once for every block of rows, so reading it is what takes time. 16-bit rows are
// multiplied by mma.sync, whose 16 x 8 tile holds 16 rows of the weight and 8 of x; float32
// exactly.
struct LinearW8A16 {
    const void* x = nullptr;              // (rows, depth)
    const std::int8_t* weight = nullptr;  // (width, depth)
    const float* scale = nullptr;         // (width)
    const void* bias = nullptr;           // (width), or null
    const void* residual = nullptr;       // (rows, width), or null
    void* out = nullptr;                  // (rows, width)
    index_t rows = 0;
    index_t width = 0;
    index_t depth = 0;
    index_t x_stride = 0;  // distances between rows, in elements
    index_t weight_stride = 0;
    index_t residual_stride = 0;
    index_t out_stride = 0;
    DType x_dtype = DType::f32;  // dtype, or float32 where a factor widened it
    DType dtype = DType::f32;    // of bias, residual and out
    Activation activation = Activation::none;
    ActivationParams activation_params;
};
void linear_w8a16(const LinearW8A16& args, const Target& target);

// How linear_w8a16 covers (rows, width): blocks of so many rows and columns. A result is summed in
// the same order in all of them.
struct FewRowsConfig {
    int rows;
    int columns;
    unsigned blocks_x;  // along the columns
    unsigned blocks_y;  // along the rows
};
// Throws std::invalid_argument for sizes that one launch does not cover.
FewRowsConfig few_rows_config(const char* op, index_t rows, index_t width, DType x_dtype);

}  // namespace fastbert::cuda
