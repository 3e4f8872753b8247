#include "cpu/decoder_attention.h"

#include <algorithm>

#include "cpu/ops/attention.h"
#include "cpu/ops/attention_decode.h"
#include "cpu/ops/qk_norm_rope.h"

namespace fastbert {
namespace decoder_detail {
namespace {

AttentionDecodeArgs decode_args(const DecoderShape& shape, const Indices& indices) {
    AttentionDecodeArgs a;
    a.dtype = shape.attention;
    a.q_head_stride = a.out_head_stride = shape.head_dim;
    a.sequences = indices.single.data();
    a.batch = static_cast<index_t>(indices.single.size());
    a.num_heads = shape.num_heads;
    a.num_kv_heads = shape.num_kv_heads;
    a.head_dim = shape.head_dim;
    a.scale = shape.scale;
    return a;
}

// offsets: (4), in which the lengths of queries and keys are kept.
AttentionArgs long_args(const DecoderShape& shape, const LongSequence& s, std::int32_t* offsets) {
    offsets[0] = offsets[2] = 0;
    offsets[1] = static_cast<std::int32_t>(s.count);
    offsets[3] = static_cast<std::int32_t>(s.keys);
    AttentionArgs a{};
    a.dtype = shape.attention;
    a.total_q = a.max_seqlen_q = s.count;
    a.total_k = a.max_seqlen_k = s.keys;
    a.num_heads = shape.num_heads;
    a.head_dim = shape.head_dim;
    a.group = shape.num_heads / shape.num_kv_heads;
    a.q_head_stride = a.out_head_stride = shape.head_dim;
    a.cu_seqlens_q = offsets;
    a.cu_seqlens_k = offsets + 2;
    a.batch = 1;
    a.scale = shape.scale;
    return a;
}

void attend_single(const AttentionSides& sides, const Indices& indices, const Team& team) {
    const Buffers& buffers = sides.buffers;
    AttentionDecodeArgs a = decode_args(sides.shape, indices);
    a.q = buffers.qkv;
    a.k = sides.layer.keys;
    a.v = sides.layer.values;
    a.out = buffers.context;
    a.q_row_stride = buffers.qkv_stride;
    a.out_row_stride = buffers.context_stride;
    a.k_row_stride = a.v_row_stride = buffers.cache.row_stride;
    a.k_head_stride = a.v_head_stride = buffers.cache.head_stride;
    attention_decode(a, buffers.attention_workspace, team.threads);
}

void attend_long(const AttentionSides& sides, bool causal, const LongSequence& sequence,
                 const Team& team) {
    const Buffers& buffers = sides.buffers;
    const index_t element = buffers.element;
    const auto keys = [&](const void* memory) {
        return static_cast<const char*>(memory) +
               sequence.first_key * buffers.cache.row_stride * element;
    };
    std::int32_t offsets[4];
    AttentionArgs a = long_args(sides.shape, sequence, offsets);
    a.q = buffers.qkv + sequence.first * buffers.qkv_stride * element;
    a.k = keys(sides.layer.keys);
    a.v = keys(sides.layer.values);
    a.out = buffers.context + sequence.first * buffers.context_stride * element;
    a.q_row_stride = buffers.qkv_stride;
    a.out_row_stride = buffers.context_stride;
    a.k_row_stride = a.v_row_stride = buffers.cache.row_stride;
    a.k_head_stride = a.v_head_stride = buffers.cache.head_stride;
    a.causal = causal;
    attention_varlen(a, buffers.attention_workspace, team.threads);
}

}  // namespace

index_t attend_workspace_bytes(const DecoderShape& shape, const Indices& indices, int threads) {
    index_t bytes = 0;
    if (!indices.single.empty())
        bytes = decode_workspace_bytes(decode_args(shape, indices), threads);
    for (const LongSequence& sequence : indices.longer) {
        std::int32_t offsets[4];
        const AttentionArgs args = long_args(shape, sequence, offsets);
        bytes = std::max(bytes, attention_workspace_bytes(args, threads));
    }
    return bytes;
}

void norm_rope_and_store(const AttentionSides& sides, const PackedBlock& block,
                         const DecoderInput& input, const Indices& indices, const Team& team) {
    const DecoderShape& shape = sides.shape;
    const Buffers& buffers = sides.buffers;
    const CachePlaces& cache = buffers.cache;
    const index_t dim = shape.head_dim, width = shape.num_heads * dim;
    const index_t kv_width = shape.num_kv_heads * dim;
    const auto column = [&](index_t first) {
        return HeadsAt{buffers.qkv + first * buffers.element, buffers.qkv_stride, dim};
    };
    QkNormRopeArgs a;
    a.q = a.q_out = column(0);
    a.k = column(width);
    a.v = column(width + kv_width);
    a.k_out = {sides.layer.keys, cache.row_stride, cache.head_stride};
    a.v_out = {sides.layer.values, cache.row_stride, cache.head_stride};
    a.cache_rows = indices.cache_rows.data();
    a.cos = input.cos;
    a.sin = input.sin;
    a.rope_stride = dim / 2;
    a.tokens = input.total;
    a.num_heads = shape.num_heads;
    a.num_kv_heads = shape.num_kv_heads;
    a.head_dim = dim;
    a.dtype = shape.attention;
    a.q_eps = block.query_norm.eps;
    a.k_eps = block.key_norm.eps;
    const auto kernel = team.table.qk_norm_rope.rows[static_cast<int>(shape.attention)];
    team.rows(input.total, [&](index_t first, index_t count, int worker) {
        kernel(a, block.query_norm.weight.data(), block.key_norm.weight.data(), first, count,
               buffers.norm_scratch(worker));
    });
}

void attend(const AttentionSides& sides, bool causal, const Indices& indices, const Team& team) {
    if (!indices.single.empty()) attend_single(sides, indices, team);
    for (const LongSequence& sequence : indices.longer) attend_long(sides, causal, sequence, team);
}

}  // namespace decoder_detail
}  // namespace fastbert
