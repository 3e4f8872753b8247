// Device side that the forms of attention share: visibility, biases, online softmax, stores.
//
// A thread holds scores as matrix products leave them: of two rows, 8 apart, columns 2 * quad and
// the next of every eight; s[4 * j + 2 * row + column]. Scores become units of log2, so that the
// exponential is the machine's own and scale * log2(e) folds into one multiply-add.
//
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; tiled as in
// Dao 2023, "FlashAttention-2".
#pragma once

#include <cfloat>
#include <type_traits>

#include "cuda/attention/attention.h"
#include "cuda/ptx.cuh"
#include "cuda/row.cuh"
#include "cuda/start.cuh"

namespace fastbert::cuda {

constexpr float log2e = 1.44269504088896341f;

// One sequence as the kernels see it.
struct Extent {
    int sequence;
    int start_q, len_q;
    int start_k, len_k;

    // Keys that a query sees: the first so many.
    __device__ int visible(int query, bool causal) const {
        return causal ? max(min(len_k, query + 1 + len_k - len_q), 0) : len_k;
    }
};

__device__ inline Extent extent_of(const AttentionVarlen& args, int sequence) {
    Extent e;
    e.sequence = sequence;
    e.start_q = args.cu_q[sequence];
    e.len_q = args.cu_q[sequence + 1] - e.start_q;
    e.start_k = args.cu_k[sequence];
    e.len_k = args.cu_k[sequence + 1] - e.start_k;
    // Without queries a sequence is nobody's work.
    if (args.singles_apart && e.len_q == 1) e.len_q = 0;
    return e;
}

// The head of keys and values that a query head reads.
__device__ inline int kv_head_of(const AttentionVarlen& args, int head) {
    return head / (args.heads / args.kv_heads);
}

// The sequence that owns a slot of attention_slots: the last b with cu_q[b] / rows + b <= slot.
// A warp probes 32 places at a time. Every lane gets the answer.
__device__ inline int sequence_of(const AttentionVarlen& args, index_t slot) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int low = 0, count = args.batch;  // the answer is among [low, low + count)
    while (count > 1) {
        const int step = (count + 31) / 32;
        const int b = low + lane * step;
        const bool before = lane * step < count && args.cu_q[b] / attention_rows + b <= slot;
        const int probes = __popc(__ballot_sync(full_mask, before));
        const int end = low + count;
        low += (probes - 1) * step;
        count = min(step, end - low);
    }
    return low;
}

// What is added to the scores of one query, in units of log2.
struct Added {
    const float* key_bias;  // from some key on, or null
    const float* bias;      // of the query from that key on, or null

    __device__ Added(const AttentionVarlen& args, const Extent& e, int head, int query, int key)
        : key_bias(args.key_bias == nullptr ? nullptr : args.key_bias + (e.start_k + key)),
          // Rows past the end need an address, and are never stored.
          bias(args.bias == nullptr
                   ? nullptr
                   : args.bias + e.sequence * args.bias_stride[0] + head * args.bias_stride[1] +
                         min(query, e.len_q - 1) * args.bias_stride[2] + key) {}

    __device__ bool any() const { return key_bias != nullptr || bias != nullptr; }

    // For the key `ahead` of the first. Loads anew each time: kept for all keys of a block, the
    // values would push everything else out of the registers.
    __device__ float operator()(int ahead) const {
        float x = key_bias == nullptr ? 0.0f : ptx::load_anew(key_bias + ahead);
        if (bias != nullptr) x += ptx::load_anew(bias + ahead);
        // finfo.min means "worst, but visible": in units of log2 it must not become -inf, or a row
        // with nothing better would be empty instead of uniform.
        const float scaled = x * log2e;
        return scaled < -FLT_MAX && x >= -FLT_MAX ? -FLT_MAX : scaled;
    }
};

// Over the four lanes that hold a row.
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(full_mask, x, 1));
    return fmaxf(x, __shfl_xor_sync(full_mask, x, 2));
}
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(full_mask, x, 1);
    return x + __shfl_xor_sync(full_mask, x, 2);
}

// Maximum and mass of a thread's two rows so far; the mass is this thread's columns only.
struct Softmax {
    float maximum[2] = {-INFINITY, -INFINITY};
    float mass[2] = {0.0f, 0.0f};

    // Takes a larger maximum, in units of log2; returns what earlier weights shrink by.
    __device__ float raise(int row, float peak) {
        const float before = maximum[row];
        maximum[row] = fmaxf(before, peak);
        return ptx::exp2_approximate(before - offset(row));
    }
    // A row that has seen no key keeps -inf; -inf - -inf would be NaN.
    __device__ float offset(int row) const {
        return maximum[row] == -INFINITY ? 0.0f : maximum[row];
    }
};

// s := weights of a block of keys that every row sees; alpha := what earlier weights shrink by.
template <int KEYS>
__device__ void fold(float (&s)[KEYS / 2], Softmax& softmax, float (&alpha)[2], float scale_log2) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float peak = s[2 * row];
#pragma unroll
        for (int i = 0; i < KEYS / 4; ++i) peak = fmaxf(peak, s[i / 2 * 4 + 2 * row + i % 2]);
        alpha[row] = softmax.raise(row, quad_max(peak) * scale_log2);
        const float offset = softmax.offset(row);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS / 4; ++i) {
            float& x = s[i / 2 * 4 + 2 * row + i % 2];
            x = ptx::exp2_approximate(fmaf(x, scale_log2, -offset));
            sum += x;
        }
        softmax.mass[row] = fmaf(softmax.mass[row], alpha[row], sum);
    }
}

// Hides keys: row r sees those before visible[r], counted from this thread's first column. Selects,
// not branches: every text whose length is not a multiple of a block ends here.
template <int KEYS>
__device__ void hide(float (&s)[KEYS / 2], const int (&visible)[2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 2; ++i) {
        const int key = i / 4 * 8 + i % 2;
        s[i] = key < visible[i / 2 % 2] ? s[i] : -INFINITY;
    }
}

// As hide and fold, with biases. The steps are fold's, so that a bias of zero gives the bits of
// none: it is added after the multiply-add, never inside it.
template <int KEYS>
__device__ void fold_biased(float (&s)[KEYS / 2], Softmax& softmax, float (&alpha)[2],
                            float scale_log2, const int (&visible)[2], const Added (&added)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float peak = -INFINITY;
#pragma unroll
        for (int i = 0; i < KEYS / 4; ++i) {
            float& x = s[i / 2 * 4 + 2 * row + i % 2];
            const int key = i / 2 * 8 + i % 2;
            if (key < visible[row]) {
                peak = fmaxf(peak, fmaf(x, scale_log2, added[row](key)));
            } else {
                x = -INFINITY;
            }
        }
        alpha[row] = softmax.raise(row, quad_max(peak));
        const float offset = softmax.offset(row);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS / 4; ++i) {
            float& x = s[i / 2 * 4 + 2 * row + i % 2];
            const int key = i / 2 * 8 + i % 2;
            float power = fmaf(x, scale_log2, -offset);
            if (key < visible[row]) power += added[row](key);
            x = ptx::exp2_approximate(power);
            sum += x;
        }
        softmax.mass[row] = fmaf(softmax.mass[row], alpha[row], sum);
    }
}

// A block of which some keys may be hidden, or that has biases.
template <int KEYS>
__device__ void fold_partly(float (&s)[KEYS / 2], Softmax& softmax, float (&alpha)[2],
                            float scale_log2, const int (&visible)[2], const Added (&added)[2]) {
    if (added[0].any()) {
        fold_biased<KEYS>(s, softmax, alpha, scale_log2, visible, added);
    } else {
        hide<KEYS>(s, visible);
        fold<KEYS>(s, softmax, alpha, scale_log2);
    }
}

// Weights as the left operand of the next products: steps of 16 keys.
template <DType D, int KEYS>
__device__ void narrow_weights(const float (&s)[KEYS / 2], std::uint32_t (&p)[KEYS / 16][4]) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            p[step][i] = ptx::pack<D>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
        }
    }
}

template <int DIM>
__device__ void shrink(float (&o)[DIM / 2], const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < DIM / 2; ++i) o[i] *= alpha[i / 2 % 2];
}

// Word i of lane q goes to word q of lane i, among the four lanes of a quad.
__device__ inline void transpose_quad(std::uint32_t (&w)[4]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = (threadIdx.x & step) != 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & step) continue;
            const std::uint32_t given = upper ? w[i] : w[i | step];
            const std::uint32_t taken = __shfl_xor_sync(full_mask, given, step);
            if (upper) {
                w[i] = taken;
            } else {
                w[i | step] = taken;
            }
        }
    }
}

// Divides a thread's rows of output by their mass and stores those with `keep`; rows are `out` and
// 8 * stride elements further on. 16 bytes a lane, but for the last 16 columns of dim 80.
template <DType D, int DIM>
__device__ void store_rows(const float (&o)[DIM / 2], const Softmax& softmax, void* out,
                           index_t stride, const bool (&keep)[2]) {
    const int quad = static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const float mass = quad_sum(softmax.mass[row]);
        // No visible key: mass and o are 0, and so is the row. NaN passes this test and stays.
        const float norm = mass == 0.0f ? 1.0f : 1.0f / mass;
        auto* const to = static_cast<std::uint16_t*>(out) + row * 8 * stride;
        const auto word = [&](int j) {
            return ptx::pack<D>(o[4 * j + 2 * row] * norm, o[4 * j + 2 * row + 1] * norm);
        };
#pragma unroll
        for (int group = 0; group < DIM / 32; ++group) {
            std::uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) w[i] = word(4 * group + i);
            transpose_quad(w);
            if (keep[row]) {
                *reinterpret_cast<uint4*>(to + 32 * group + 8 * quad) =
                    make_uint4(w[0], w[1], w[2], w[3]);
            }
        }
#pragma unroll
        for (int j = DIM / 32 * 4; j < DIM / 8; ++j) {
            const std::uint32_t pair = word(j);
            if (keep[row]) *reinterpret_cast<std::uint32_t*>(to + 8 * j + 2 * quad) = pair;
        }
    }
}

// Calls f(std::integral_constant<int, dim>).
template <typename F>
void with_dim(int dim, F f) {
    switch (dim) {
        case 32:
            return f(std::integral_constant<int, 32>{});
        case 64:
            return f(std::integral_constant<int, 64>{});
        case 80:
            return f(std::integral_constant<int, 80>{});
        case 96:
            return f(std::integral_constant<int, 96>{});
        default:
            return f(std::integral_constant<int, 128>{});
    }
}

}  // namespace fastbert::cuda
