// Attention over packed sequences: its description, and the host's choices as pure functions.
//
// A head of one sequence costs 4 * len_q * len_k * dim operations of the matrix units, len_q *
// len_k exponentials, and 4 * (len_q + len_k) * dim bytes of 16-bit elements to and from memory. At
// dim 64 a multiprocessor of an H200 does 4096 such operations and 16 exponentials a cycle, so both
// take as long: 256 operations for each exponential. Memory is the floor below about 400 tokens (n
// / 2 operations a byte, and the machine has about 200 by its data sheet); above, the other two
// are, which is why one block's softmax has to run beside another block's products.
#pragma once

#include "common/types.h"
#include "cuda/ops.h"
#include "cuda/tensor_map.h"

namespace fastbert::cuda {

// out = softmax(scale * q k^T + key_bias + bias) v per sequence and head; sums are float32. A query
// that sees no key gives zeros. Strides are in elements; rows of one head lie contiguous.
struct AttentionVarlen {
    const void* q = nullptr;             // (total_q, heads, dim)
    const void* k = nullptr;             // (total_k, kv_heads, dim)
    const void* v = nullptr;             // (total_k, kv_heads, dim)
    void* out = nullptr;                 // (total_q, heads, dim) contiguous
    const std::int32_t* cu_q = nullptr;  // (batch + 1)
    const std::int32_t* cu_k = nullptr;  // (batch + 1)
    const float* key_bias = nullptr;     // (total_k), or null
    const float* bias = nullptr;         // [batch][head][query][key], keys adjacent, or null
    index_t total_q = 0;
    index_t total_k = 0;
    index_t q_stride = 0, q_head = 0;  // between tokens, between heads
    index_t k_stride = 0, k_head = 0;
    index_t v_stride = 0, v_head = 0;
    index_t bias_stride[3] = {};  // 0 where it is broadcast
    int batch = 0;
    int heads = 0;
    int kv_heads = 0;  // query head h reads h / (heads / kv_heads)
    int dim = 0;
    DType dtype = DType::f32;
    bool causal = false;         // query i sees keys j <= i + len_k - len_q
    bool singles_apart = false;  // sequences of one query are left out: attention_decode has them
    float scale = 0;
};

// Sequences of a single query, apart from the others: a step of decoding, where reading keys and
// values is what takes time. See attention/decode.cuh.
struct SingleQueries {
    bool apart = false;  // they are computed by the form of their own
    bool only = false;   // there are no others
    int chunks = 1;      // of decode_chunk keys, as many as the longest sequence has, at least 1
    float* parts = nullptr;  // decode_part_floats() a head and chunk of every sequence; null: none
};
// Keys of a block of that form, and what it leaves of a head where a sequence has more: weighted
// values, their maximum and their mass.
constexpr int decode_chunk = 256;
constexpr index_t decode_part_floats(int dim) { return dim + 2; }

// `op` names the operation in messages.
void attention_varlen(const char* op, const AttentionVarlen& args, const SingleQueries& singles,
                      const Target& target);

// Query rows of a warpgroup's tile in the sm_90 form, and of a block in the other two.
constexpr int attention_rows = 64;
// Keys that are folded at a time. Tiles depend on the head's width and element type alone, so a
// sequence's result does not depend on what else is in the batch.
constexpr int keys_sm90 = 128;
constexpr int keys_sm80 = 64;
constexpr int keys_f32 = 32;

// The sm_90 form: per multiprocessor one block, of which one warpgroup fetches keys and values into
// a ring of stages and the others each take 64 queries at a time. A ring at least as long as a
// sequence keeps all its keys and values in shared memory until its last query is done.
struct AttentionPlan {
    int warpgroups;    // that compute
    int stages;        // blocks of keys_sm90 keys and values
    int row_bytes;     // the swizzle's span: a head's row is cut into blocks of so many bytes
    int shared_bytes;  // of a block

    constexpr int threads() const { return 128 * (warpgroups + 1); }
    constexpr int resident_keys() const { return stages * keys_sm90; }
};

constexpr bool attention_dim(int dim) {
    return dim == 32 || dim == 64 || dim == 80 || dim == 96 || dim == 128;
}

// Registers decide the warpgroups: a thread holds 64 scores, 32 words of weights and dim / 2
// outputs, and has 160 registers where three compute, 240 where two do.
constexpr AttentionPlan attention_plan_sm90(int dim) {
    AttentionPlan plan{};
    plan.warpgroups = dim <= 64 ? 3 : 2;
    plan.stages = dim <= 64 ? 6 : dim == 80 ? 5 : dim == 96 ? 4 : 3;
    plan.row_bytes = dim % 64 == 0 ? 128 : dim % 32 == 0 ? 64 : 32;
    const int head_bytes = dim * 2;
    // Two items of 64 bytes for each warpgroup, and barriers.
    const int small = plan.warpgroups * 2 * 64 + 8 * (4 * plan.stages + 2 * plan.warpgroups);
    plan.shared_bytes = plan.stages * 2 * keys_sm90 * head_bytes +
                        plan.warpgroups * attention_rows * head_bytes + small;
    return plan;
}

// Rows of shared memory are one 16-byte unit longer than a head's: an odd number of units, so that
// the eight rows of a matrix lie in different banks.
constexpr int padded_row_bytes(int dim) { return dim * 2 + 16; }

// The sm_80 form: the queries, and two stages of keys and values.
constexpr int attention_shared_sm80(int dim) {
    return padded_row_bytes(dim) * (attention_rows + 4 * keys_sm80);
}

// The float32 form: queries, keys, values, weights, with rows of four floats' padding.
constexpr int attention_shared_f32(int dim) {
    return 4 * ((dim + 4) * (attention_rows + 2 * keys_f32) + (keys_f32 + 4) * attention_rows);
}

// Blocks along the queries of the forms that have one for each tile. Sequence b owns those from
// cu_q[b] / attention_rows + b on: enough for each of its tiles, known without its length.
constexpr index_t attention_slots(index_t total_q, int batch) {
    return total_q / attention_rows + batch;
}

// Throws std::invalid_argument for a description that no form takes.
void check_attention(const char* op, const AttentionVarlen& args, const SingleQueries& singles);

// The copy engine's view of q, k or v: (dim, heads, tokens) in boxes of one head and `rows` tokens.
TensorShape attention_view(const void* data, index_t tokens, int heads, index_t stride,
                           index_t head_stride, int rows, const AttentionVarlen& args);

// One per element type and form; what they start fits the description, which has been checked.
void start_attention_f32(const AttentionVarlen& args, void* stream);
template <DType D>
void start_attention_sm80(const AttentionVarlen& args, void* stream);
template <DType D>
void start_attention_sm90(const AttentionVarlen& args, int blocks, void* stream);
template <DType D>
void start_attention_decode(const AttentionVarlen& args, const SingleQueries& singles,
                            void* stream);

}  // namespace fastbert::cuda
