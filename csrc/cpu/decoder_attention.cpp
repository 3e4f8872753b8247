#include "cpu/decoder_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/ops/attention.h"

namespace fastbert {
namespace decoder_detail {
namespace {

AttentionArgs sequence_args(const Weights& weights, const DecoderInput& input,
                            const Buffers& buffers, const CacheLayer& layer, index_t b,
                            index_t kv_head, std::int32_t* lengths) {
    const DecoderShape& shape = weights.shape;
    const index_t first = buffers.cu_seqlens[b], count = buffers.cu_seqlens[b + 1] - first;
    const index_t group = shape.num_heads / shape.num_kv_heads, e = buffers.element;
    const CachePlaces& cache = buffers.cache;
    const index_t keys = buffers.held[b] + count;
    lengths[0] = 0;
    lengths[1] = static_cast<std::int32_t>(count);
    lengths[2] = 0;
    lengths[3] = static_cast<std::int32_t>(keys);
    const auto rows = [&](const void* memory) {
        return static_cast<const char*>(memory) +
               (buffers.places[b] * cache.row_stride + kv_head * cache.head_stride) * e;
    };
    AttentionArgs a{};
    const index_t column = kv_head * group * shape.head_dim;
    a.q = buffers.qkv + (first * buffers.qkv_stride + column) * e;
    a.k = rows(layer.keys);
    a.v = rows(layer.values);
    a.out = buffers.context + (first * buffers.context_stride + column) * e;
    a.dtype = shape.attention;
    a.total_q = a.max_seqlen_q = count;
    a.total_k = a.max_seqlen_k = keys;
    a.num_heads = group;
    a.head_dim = shape.head_dim;
    a.q_row_stride = buffers.qkv_stride;
    a.k_row_stride = a.v_row_stride = cache.row_stride;
    a.q_head_stride = a.out_head_stride = shape.head_dim;
    a.out_row_stride = buffers.context_stride;
    a.cu_seqlens_q = lengths;
    a.cu_seqlens_k = lengths + 2;
    a.batch = 1;
    a.scale = shape.scale;
    a.causal = input.causal;
    return a;
}

}  // namespace

index_t attention_workspace_bytes(const Weights&, const DecoderInput&, const Buffers&, int) {
    return 0;
}

void norm_rope_and_store(const Weights& weights, const PackedBlock& block,
                         const DecoderInput& input, const Buffers& buffers, const CacheLayer& layer,
                         const Team& team) {
    const DecoderShape& shape = weights.shape;
    const index_t d = shape.head_dim, e = buffers.element;
    const auto code = static_cast<int>(shape.attention);
    std::vector<float> head(d), turned(d);
    for (index_t b = 0; b < input.batch; ++b) {
        for (index_t t = buffers.cu_seqlens[b]; t < buffers.cu_seqlens[b + 1]; ++t) {
            const index_t row = buffers.places[b] + buffers.held[b] + t - buffers.cu_seqlens[b];
            char* const qkv = buffers.qkv + t * buffers.qkv_stride * e;
            for (index_t h = 0; h < shape.num_heads + shape.num_kv_heads; ++h) {
                const RmsNorm& norm = h < shape.num_heads ? block.query_norm : block.key_norm;
                team.table.vec_math.widen[code](qkv + h * d * e, head.data(), d);
                rms_rows(norm, head.data(), head.data(), d, 1, d);
                for (index_t i = 0; i < d / 2; ++i) {
                    const float c = input.cos[t * (d / 2) + i], s = input.sin[t * (d / 2) + i];
                    turned[i] = head[i] * c - head[i + d / 2] * s;
                    turned[i + d / 2] = head[i + d / 2] * c + head[i] * s;
                }
                char* out = qkv + h * d * e;
                if (h >= shape.num_heads) {
                    const index_t kv = h - shape.num_heads;
                    out = static_cast<char*>(layer.keys) +
                          (row * buffers.cache.row_stride + kv * buffers.cache.head_stride) * e;
                    std::copy_n(qkv + (h + shape.num_kv_heads) * d * e, d * e,
                                static_cast<char*>(layer.values) +
                                    (row * buffers.cache.row_stride +
                                     kv * buffers.cache.head_stride) *
                                        e);
                }
                team.table.vec_math.narrow[code](turned.data(), out, d);
            }
        }
    }
}

void attend(const Weights& weights, const DecoderInput& input, const Buffers& buffers,
            const CacheLayer& layer, const Team&) {
    std::int32_t lengths[4];
    for (index_t b = 0; b < input.batch; ++b) {
        if (buffers.cu_seqlens[b] == buffers.cu_seqlens[b + 1]) continue;
        for (index_t h = 0; h < weights.shape.num_kv_heads; ++h) {
            attention_varlen(sequence_args(weights, input, buffers, layer, b, h, lengths));
        }
    }
}

void rms_rows(const RmsNorm& norm, const float* rows, float* out, index_t stride, index_t count,
              index_t width) {
    for (index_t r = 0; r < count; ++r) {
        const float* const x = rows + r * stride;
        float sum = 0.0f;
        for (index_t i = 0; i < width; ++i) sum += x[i] * x[i];
        const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + norm.eps);
        for (index_t i = 0; i < width; ++i) out[r * stride + i] = x[i] * scale * norm.weight[i];
    }
}

}  // namespace decoder_detail
}  // namespace fastbert
