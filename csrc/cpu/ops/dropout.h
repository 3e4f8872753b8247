// Dropout by counter: whether an element is kept follows from a seed and from its place alone, so
// that a backward pass finds it again and nothing is stored. And the softmax of attention with it,
// forward and backward, over scores that a product left in memory.
#pragma once

#include "common/types.h"

namespace fastbert {

// Element e of a matrix is dropped where the upper 24 bits of its word of Philox4x32-7 under the
// key `seed` (vec/philox.h) are below `threshold`; what is kept is multiplied by `scale`. Words are
// drawn in chunks of 64, and every row of a softmax begins with a new one.
struct Dropping {
    index_t seed = 0;
    float threshold = 0.0f;  // 2^24 times the probability; 0 drops nothing
    float scale = 1.0f;
};

struct DropoutArgs {
    const void* x = nullptr;         // (count) of dtype
    const void* residual = nullptr;  // (count) of out_dtype, or absent
    void* out = nullptr;             // (count) of out_dtype: dropped x, + residual
    index_t count = 0;
    Dropping dropping;
    DType dtype = DType::f32;
    DType out_dtype = DType::f32;
};

// Rows of scores (sequences, heads, queries, keys) without gaps.
struct SoftmaxArgs {
    void* scores = nullptr;           // of dtype; becomes the dropped probabilities
    void* gradients = nullptr;        // of dtype: those of the probabilities, become those of the
                                      // scores; backward alone
    float* statistics = nullptr;      // (rows, 2): largest score, 1 / sum; written forward
    const float* key_bias = nullptr;  // (sequences, keys), or absent
    index_t sequences = 0;
    index_t heads = 0;
    index_t queries = 0;
    index_t keys = 0;
    Dropping dropping;
    float scale = 1.0f;   // multiplies the scores
    bool causal = false;  // key j is visible to query i iff j <= i + keys - queries
    DType dtype = DType::f32;
};

struct DropoutKernels {
    // Elements [first, first + count) of chunks of 64. Indexed by DType of x and of out.
    void (*add[2][2])(const DropoutArgs& args, index_t first, index_t count);
    // Rows [first, first + count); scratch holds 3 * (keys + 64) floats. Indexed by DType.
    void (*softmax[2])(const SoftmaxArgs& args, index_t first, index_t count, float* scratch);
    void (*softmax_backward[2])(const SoftmaxArgs& args, index_t first, index_t count,
                                float* scratch);
};

// All throw std::invalid_argument, with a sentence, for arguments that do not fit together.
void dropout_add(const DropoutArgs& args);

// softmax(scale * scores + key_bias) over the visible keys, dropped; zeros where there is none.
void softmax_dropout(const SoftmaxArgs& args);

// The gradients of softmax_dropout, from the scores as they were before it and its statistics.
void softmax_dropout_backward(const SoftmaxArgs& args);

}  // namespace fastbert
