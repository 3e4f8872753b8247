// Scaled dot-product attention over packed sequences.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace fastbert {

// For the queries i and keys j of one sequence b and every head h:
//   out[i, h] = sum_j softmax_j(scale * <q[i, h], k[j, h]> + key_bias[j] + bias[b, h, i, j]) v[j,
//   h]
// A score of -inf is invisible; a query that sees no key gives zeros. Strides count elements, the
// innermost one is 1.
struct AttentionArgs {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    DType dtype;  // of q, k, v and out: f32, bf16 or f16
    index_t total_q, total_k;
    index_t num_heads, head_dim;
    index_t group;  // query heads that share a head of k and v: h reads h / group; 0 is 1
    index_t q_row_stride, q_head_stride;
    index_t k_row_stride, k_head_stride;
    index_t v_row_stride, v_head_stride;
    index_t out_row_stride, out_head_stride;
    const std::int32_t* cu_seqlens_q;  // batch + 1, first 0, last total_q, never falling
    const std::int32_t* cu_seqlens_k;  // the same for the keys
    index_t batch;
    index_t max_seqlen_q, max_seqlen_k;
    float scale;
    bool causal;            // key j is visible to query i iff j <= i + len_k - len_q
    const float* key_bias;  // (total_k) or null
    const float* bias;      // (batch | 1, num_heads | 1, max_seqlen_q, max_seqlen_k) or null
    // 0 where it is broadcast; they may be negative.
    index_t bias_batch_stride, bias_head_stride, bias_query_stride;
};

// A slice of the queries of one sequence, for some heads: what one thread does at a time.
struct AttentionTask {
    index_t sequence;
    index_t head_begin, head_end;
    index_t query_begin, query_count;  // query_begin counts from the first query of the sequence
};

struct AttentionKernel {
    // next: what this thread is likely to do after `task`, or null. Only fetched, never computed.
    void (*run)(const AttentionArgs& args, const AttentionTask& task, const AttentionTask* next,
                void* scratch);
    // Bytes of 64-byte aligned scratch for slices of up to query_count queries.
    index_t (*scratch_bytes)(index_t head_dim, index_t query_count);
    index_t query_block;  // queries it works on at once
};

struct AttentionKernels {
    AttentionKernel f32, bf16, f16;
    // y = e^x for x <= 0 as probabilities of bf16 have it before they are rounded: what tests
    // measure.
    void (*bf16_exponential)(const float* x, float* y, index_t n);
};

// Bytes of workspace that attention_varlen() needs for these arguments with `threads` threads.
index_t attention_workspace_bytes(const AttentionArgs& args, int threads);

// Throws std::invalid_argument with a sentence where a size, stride or offset cannot be right.
void check_attention(const AttentionArgs& args);

// Checks the arguments, then computes. Every query's result depends on its own sequence alone: it
// has the same bits in any batch and with any number of threads.
void attention_varlen(const AttentionArgs& args);

// The same on up to `threads` threads and with the caller's workspace, 64-byte aligned, of
// attention_workspace_bytes(args, threads).
void attention_varlen(const AttentionArgs& args, void* workspace, int threads);

}  // namespace fastbert
