#pragma once

#include "cpu/ops/attention_decode.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {
namespace decode_detail {

// Rows of a head lie a cache's row apart, which no hardware prefetcher follows.
constexpr index_t kRowsAhead = 12;

template <typename T>
inline void prefetch_row(const T* row, index_t head_dim) {
    const char* const end = reinterpret_cast<const char*>(row + head_dim);
    for (const char* at = reinterpret_cast<const char*>(row); at < end; at += 64) {
        __builtin_prefetch(at, 0, 3);
    }
}

// scores[g][j] = scale * <q[g], k[j]> for `group` queries, each key loaded once.
template <int group, typename T>
inline void scores_of(const float* q, index_t q_stride, const T* k, index_t stride, index_t keys,
                      index_t head_dim, float scale, float* scores) {
    for (index_t j = 0; j < keys; ++j) {
        const T* const row = k + j * stride;
        if (j + kRowsAhead < keys) prefetch_row(row + kRowsAhead * stride, head_dim);
        F32 sums[group];
        for (int g = 0; g < group; ++g) sums[g] = zero();
        index_t i = 0;
        for (; i + F32::lanes <= head_dim; i += F32::lanes) {
            const F32 key = load(row + i);
            for (int g = 0; g < group; ++g) {
                sums[g] = fma(load(q + g * q_stride + i), key, sums[g]);
            }
        }
        if (i < head_dim) {
            const int left = static_cast<int>(head_dim - i);
            const F32 key = load_n(row + i, left);
            for (int g = 0; g < group; ++g) {
                sums[g] = fma(load_n(q + g * q_stride + i, left), key, sums[g]);
            }
        }
        for (int g = 0; g < group; ++g) scores[g * kDecodeChunk + j] = reduce_add(sums[g]) * scale;
    }
}

// out[g][columns] = sum_j p[g][j] v[j][columns], of `vectors` vectors of columns.
template <int group, int vectors, typename T, typename Extent>
inline void weigh_columns(const float* p, const T* v, index_t stride, index_t keys, float* out,
                          index_t out_stride, Extent extent) {
    F32 sums[group][vectors];
    for (auto& row : sums) {
        for (F32& sum : row) sum = zero();
    }
    for (index_t j = 0; j < keys; ++j) {
        const T* const row = v + j * stride;
        if (j + kRowsAhead < keys) {
            __builtin_prefetch(row + kRowsAhead * stride, 0, 3);
            if (vectors > 2) __builtin_prefetch(row + kRowsAhead * stride + 32, 0, 3);
        }
        F32 values[vectors];
        for (int c = 0; c < vectors; ++c) values[c] = load(row + c * F32::lanes, extent);
        for (int g = 0; g < group; ++g) {
            const F32 weight = set1(p[g * kDecodeChunk + j]);
            for (int c = 0; c < vectors; ++c) sums[g][c] = fma(weight, values[c], sums[g][c]);
        }
    }
    for (int g = 0; g < group; ++g) {
        for (int c = 0; c < vectors; ++c) {
            store(out + g * out_stride + c * F32::lanes, sums[g][c], extent);
        }
    }
}

template <int group, typename T>
inline void weigh(const float* p, const T* v, index_t stride, index_t keys, index_t head_dim,
                  float* out, index_t out_stride) {
    constexpr int wide = 4;
    index_t i = 0;
    for (; i + wide * F32::lanes <= head_dim; i += wide * F32::lanes) {
        weigh_columns<group, wide>(p, v + i, stride, keys, out + i, out_stride, Whole{});
    }
    for (; i + F32::lanes <= head_dim; i += F32::lanes) {
        weigh_columns<group, 1>(p, v + i, stride, keys, out + i, out_stride, Whole{});
    }
    if (i < head_dim) {
        weigh_columns<group, 1>(p, v + i, stride, keys, out + i, out_stride,
                                Part{static_cast<int>(head_dim - i)});
    }
}

// Turns scores into exponentials, and returns their maximum and sum.
inline void exponentials(float* scores, index_t keys, float& high, float& sum) {
    F32 most = set1(-__builtin_inff());
    index_t j = 0;
    for (; j + F32::lanes <= keys; j += F32::lanes) most = max(most, load(scores + j));
    high = reduce_max(most);
    for (; j < keys; ++j) high = scores[j] > high ? scores[j] : high;
    Sums sums;
    const F32 shift = set1(high);
    sweep(keys, [&](index_t i, auto extent, int slot) {
        const F32 e = keep(exp(sub(load(scores + i, extent), shift)), extent);
        store(scores + i, e, extent);
        sums.part[slot] = add(sums.part[slot], e);
    });
    sum = sums.total();
}

template <int group, typename T>
inline void queries(const float* q, const T* k, const T* v, const AttentionDecodeArgs& args,
                    index_t keys, float* scores, float* parts) {
    const index_t d = args.head_dim, part = decode_part_floats(d);
    scores_of<group>(q, decode_padded(d), k, args.k_row_stride, keys, d, args.scale, scores);
    for (int g = 0; g < group; ++g) {
        exponentials(scores + g * kDecodeChunk, keys, parts[g * part], parts[g * part + 1]);
    }
    weigh<group>(scores, v, args.v_row_stride, keys, d, parts + 16, part);
}

template <typename T>
void chunk(const AttentionDecodeArgs& args, const DecodeTask& task, float* parts, float* scratch) {
    const DecodeSequence& sequence = args.sequences[task.sequence];
    const index_t d = args.head_dim, group = args.num_heads / args.num_kv_heads;
    const index_t row = sequence.first_key + task.first, padded = decode_padded(d);
    const T* const k =
        static_cast<const T*>(args.k) + row * args.k_row_stride + task.kv_head * args.k_head_stride;
    const T* const v =
        static_cast<const T*>(args.v) + row * args.v_row_stride + task.kv_head * args.v_head_stride;
    float* const scores = scratch + group * padded;
    for (index_t g = 0; g < group; ++g) {
        const T* const q = static_cast<const T*>(args.q) + sequence.query * args.q_row_stride +
                           (task.kv_head * group + g) * args.q_head_stride;
        sweep(d, [&](index_t i, auto extent, int) {
            store(scratch + g * padded + i, load(q + i, extent), extent);
        });
    }
    const index_t part = decode_part_floats(d);
    index_t g = 0;
    for (; g + 4 <= group; g += 4) {
        queries<4>(scratch + g * padded, k, v, args, task.count, scores, parts + g * part);
    }
    for (; g + 2 <= group; g += 2) {
        queries<2>(scratch + g * padded, k, v, args, task.count, scores, parts + g * part);
    }
    if (g < group) {
        queries<1>(scratch + g * padded, k, v, args, task.count, scores, parts + g * part);
    }
}

template <typename T>
void join(const float* parts, index_t chunks, index_t stride, index_t head_dim, void* out) {
    float high = -__builtin_inff();
    for (index_t c = 0; c < chunks; ++c) {
        const float here = parts[c * stride];
        // A NaN wins over every number, and stays.
        high = here <= high ? high : here;
    }
    const auto weight = [&](index_t c) {
        return chunks == 1 ? set1(1.0f) : exp(set1(parts[c * stride] - high));
    };
    F32 sum = zero();
    for (index_t c = 0; c < chunks; ++c) sum = fma(weight(c), set1(parts[c * stride + 1]), sum);
    T* const to = static_cast<T*>(out);
    sweep(head_dim, [&](index_t i, auto extent, int) {
        F32 y = zero();
        for (index_t c = 0; c < chunks; ++c) {
            y = fma(weight(c), load(parts + c * stride + 16 + i, extent), y);
        }
        store(to + i, div(y, sum), extent);
    });
}

}  // namespace decode_detail

constexpr AttentionDecodeKernels attention_decode_kernels = {
    {decode_detail::chunk<float>, decode_detail::chunk<bf16_t>, decode_detail::chunk<f16_t>},
    {decode_detail::join<float>, decode_detail::join<bf16_t>, decode_detail::join<f16_t>}};

}  // namespace
}  // namespace fastbert
