#pragma once

#include "cpu/ops/qk_norm_rope.h"
#include "cpu/vec/rms.h"

namespace fastbert {
namespace {

template <typename T>
inline T* head_at(const HeadsAt& heads, index_t row, index_t head) {
    return static_cast<T*>(heads.data) + row * heads.row_stride + head * heads.head_stride;
}

// The head is in scratch before any of it is written: out may be x.
template <typename T>
inline void norm_rope_head(const T* x, T* out, const float* weight, const float* cos,
                           const float* sin, index_t head_dim, float eps, float* scratch) {
    const F32 scale = root_mean_square(head_dim, eps, [&](index_t i, auto extent) {
        const F32 s = load(x + i, extent);
        store(scratch + i, s, extent);
        return s;
    });
    const index_t half = head_dim / 2;
    sweep(half, [&](index_t i, auto extent, int) {
        const F32 a = mul(mul(load(scratch + i, extent), scale), load(weight + i, extent));
        const F32 b =
            mul(mul(load(scratch + half + i, extent), scale), load(weight + half + i, extent));
        const F32 c = load(cos + i, extent), s = load(sin + i, extent);
        store(out + i, fnma(b, s, mul(a, c)), extent);
        store(out + half + i, fma(a, s, mul(b, c)), extent);
    });
}

template <typename T>
void qk_norm_rope_rows(const QkNormRopeArgs& args, const float* q_weight, const float* k_weight,
                       index_t first, index_t count, float* scratch) {
    for (index_t token = first; token < first + count; ++token) {
        const float* cos = args.cos + token * args.rope_stride;
        const float* sin = args.sin + token * args.rope_stride;
        for (index_t h = 0; h < args.num_heads; ++h) {
            norm_rope_head(head_at<const T>(args.q, token, h), head_at<T>(args.q_out, token, h),
                           q_weight, cos, sin, args.head_dim, args.q_eps, scratch);
        }
        const index_t row = args.cache_rows == nullptr ? token : args.cache_rows[token];
        for (index_t h = 0; h < args.num_kv_heads; ++h) {
            norm_rope_head(head_at<const T>(args.k, token, h), head_at<T>(args.k_out, row, h),
                           k_weight, cos, sin, args.head_dim, args.k_eps, scratch);
            if (args.v.data == nullptr) continue;
            const T* v = head_at<const T>(args.v, token, h);
            T* to = head_at<T>(args.v_out, row, h);
            for (index_t i = 0; i < args.head_dim; ++i) to[i] = v[i];
        }
    }
}

constexpr QkNormRopeKernels qk_norm_rope_kernels = {
    {qk_norm_rope_rows<float>, qk_norm_rope_rows<bf16_t>, qk_norm_rope_rows<f16_t>}};

}  // namespace
}  // namespace fastbert
