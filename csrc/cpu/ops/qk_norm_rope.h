// Every head of q and k divided by its root mean square, times a gain, then rotated by the token's
// position: elements i and i + head_dim / 2 are a pair, (a, b) becomes (a cos - b sin, b cos + a
// sin). Values, where there are any, are copied beside the keys.
#pragma once

#include "common/types.h"
#include "cpu/ops/params.h"

namespace fastbert {

// Heads of tokens: element i of head h of token t is data[row * row_stride + h * head_stride + i],
// where row is t, or for keys and values that go into a cache, QkNormRopeArgs::cache_rows[t].
struct HeadsAt {
    void* data = nullptr;
    index_t row_stride = 0, head_stride = 0;
};

struct QkNormRopeArgs {
    HeadsAt q, k, v;                      // v.data null: there is nothing to copy
    HeadsAt q_out, k_out, v_out;          // may be q, k and v themselves
    const index_t* cache_rows = nullptr;  // (tokens): rows of k_out and v_out; null: those of k
    Param q_weight, k_weight;             // (head_dim)
    const float* cos = nullptr;           // (tokens, head_dim / 2), rows rope_stride apart
    const float* sin = nullptr;
    index_t rope_stride = 0;
    index_t tokens = 0;
    index_t num_heads = 0, num_kv_heads = 0;
    index_t head_dim = 0;  // even
    DType dtype = DType::f32;
    float q_eps = 0, k_eps = 0;
};

struct QkNormRopeKernels {
    // Tokens [first, first + count); scratch holds head_dim floats. Indexed by DType.
    void (*rows[3])(const QkNormRopeArgs& args, const float* q_weight, const float* k_weight,
                    index_t first, index_t count, float* scratch);
};

// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void qk_norm_rope(const QkNormRopeArgs& args);

}  // namespace fastbert
