// Attention of single queries over long caches: one new token of each of several sequences. What
// costs time is reading keys and values, each of which is read once for all query heads of a group.
//
// The keys of a sequence are taken in chunks of kDecodeChunk; every chunk gives a maximum, a sum
// and weighted values, which are joined in the order of the chunks. So a sequence's result depends
// on nothing but itself. It need not have the bits of attention_varlen, whose blocks are others.
#pragma once

#include "common/types.h"

namespace fastbert {

constexpr index_t kDecodeChunk = 256;

// One sequence: its query is row `query` of q, and of out; its keys and values are rows
// [first_key, first_key + keys) of k and v.
struct DecodeSequence {
    index_t query = 0;
    index_t first_key = 0;
    index_t keys = 0;
};

struct AttentionDecodeArgs {
    const void* q = nullptr;
    const void* k = nullptr;
    const void* v = nullptr;
    void* out = nullptr;
    DType dtype = DType::f32;                     // of all four: f32, bf16 or f16
    index_t q_row_stride = 0, q_head_stride = 0;  // elements; the innermost stride is 1
    index_t k_row_stride = 0, k_head_stride = 0;
    index_t v_row_stride = 0, v_head_stride = 0;
    index_t out_row_stride = 0, out_head_stride = 0;
    const DecodeSequence* sequences = nullptr;  // (batch)
    index_t batch = 0;
    index_t num_heads = 0, num_kv_heads = 0;  // query head h reads h / (num_heads / num_kv_heads)
    index_t head_dim = 0;
    float scale = 0;
};

// Up to kDecodeChunk keys of one sequence for some heads of k and v.
struct DecodeTask {
    index_t sequence;
    index_t first_head, heads;
    index_t first, count;  // keys, counted from the sequence's first
};

struct AttentionDecodeKernels {
    // What the chunk gives to each query head of a group, one after the other: its maximum, the sum
    // of exponentials and head_dim weighted values, not divided by the sum; those of the next head
    // of k and v begin `parts_stride` floats behind. scratch: decode_scratch_floats(). Indexed by
    // DType: f32, bf16, f16.
    void (*chunk[3])(const AttentionDecodeArgs& args, const DecodeTask& task, float* parts,
                     index_t parts_stride, float* scratch);
    // Joins `chunks` parts of a query head, `stride` floats apart, and writes them to out.
    void (*join[3])(const float* parts, index_t chunks, index_t stride, index_t head_dim,
                    void* out);
};

constexpr index_t decode_padded(index_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Of one chunk and query head.
constexpr index_t decode_part_floats(index_t head_dim) { return 16 + decode_padded(head_dim); }

// Of one thread: queries of so many heads and their scores.
constexpr index_t decode_scratch_floats(index_t num_heads, index_t head_dim) {
    return num_heads * (decode_padded(head_dim) + kDecodeChunk);
}

// Bytes of workspace that attention_decode() needs with `threads` threads.
index_t decode_workspace_bytes(const AttentionDecodeArgs& args, int threads);

// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void attention_decode(const AttentionDecodeArgs& args);

// The same on up to `threads` threads and with the caller's workspace, 64-byte aligned.
void attention_decode(const AttentionDecodeArgs& args, void* workspace, int threads);

}  // namespace fastbert
