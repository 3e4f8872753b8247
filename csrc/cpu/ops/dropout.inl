#pragma once

#include "cpu/ops/dropout.h"
#include "cpu/vec/philox.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

constexpr index_t kChunk = 64;
constexpr int kCounters = 16;
constexpr float kNothing = -__builtin_inff();

// The factors of the 64 elements of a chunk: 0 or the scale. Word w of counter c of the chunk
// belongs to element 16 w + c, on every instruction set.
inline void chunk_factors(const Dropping& dropping, std::uint64_t chunk, float* factors) {
    const F32 threshold = set1(dropping.threshold), scale = set1(dropping.scale);
    for (int c = 0; c < kCounters; c += F32::lanes) {
        I32 words[4];
        philox(chunk * kCounters + static_cast<std::uint64_t>(c),
               static_cast<std::uint64_t>(dropping.seed), words);
        for (int w = 0; w < 4; ++w) {
            const F32 drawn = to_f32(shift_right_8(words[w]));
            store(factors + kCounters * w + c, select(less(drawn, threshold), zero(), scale));
        }
    }
}

template <typename In, typename Out>
void dropout_add_of(const DropoutArgs& args, index_t first, index_t count) {
    alignas(64) float factors[kChunk];
    for (index_t at = first; at < first + count; at += kChunk) {
        chunk_factors(args.dropping, static_cast<std::uint64_t>(at / kChunk), factors);
        const index_t left = first + count - at;
        const In* x = static_cast<const In*>(args.x) + at;
        const Out* residual = static_cast<const Out*>(args.residual) + at;
        Out* out = static_cast<Out*>(args.out) + at;
        sweep(left < kChunk ? left : kChunk, [&](index_t i, auto extent, int) {
            F32 v = mul(load(x + i, extent), load(factors + i, extent));
            if (args.residual != nullptr) v = add(v, load(residual + i, extent));
            store(out + i, v, extent);
        });
    }
}

// One row of scores, and what stands beside it.
struct SoftmaxRow {
    index_t visible;
    const float* key_bias;
    float* statistics;

    SoftmaxRow(const SoftmaxArgs& args, index_t row) {
        const index_t query = row % args.queries;
        const index_t seen = query + args.keys - args.queries + 1;
        visible = !args.causal || seen > args.keys ? args.keys : (seen < 0 ? 0 : seen);
        key_bias = args.key_bias;
        if (key_bias != nullptr) key_bias += row / (args.queries * args.heads) * args.keys;
        statistics = args.statistics + 2 * row;
    }

    template <typename T, typename Extent>
    F32 score(const T* scores, index_t i, float scale, Extent extent) const {
        const F32 scaled = mul(load(scores + i, extent), set1(scale));
        return key_bias == nullptr ? scaled : add(scaled, load(key_bias + i, extent));
    }
};

// The factors of a row, behind each other; nothing is written where nothing is dropped.
inline void row_factors(const SoftmaxArgs& args, index_t row, index_t visible, float* factors) {
    if (args.dropping.threshold == 0.0f) return;
    const index_t chunks = (args.keys + kChunk - 1) / kChunk;
    const index_t first = row * chunks;
    for (index_t i = 0; i * kChunk < visible; ++i) {
        chunk_factors(args.dropping, static_cast<std::uint64_t>(first + i), factors + i * kChunk);
    }
}

template <typename T>
inline void clear(T* row, index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) row[i] = T{};
}

// The largest of n scores; NaN does not count. Writes up to a vector behind the last one.
inline float largest(float* scores, index_t n) {
    for (index_t i = n; i < n + F32::lanes; ++i) scores[i] = kNothing;
    F32 high[2] = {set1(kNothing), set1(kNothing)};
    for (index_t i = 0, slot = 0; i < n; i += F32::lanes, slot ^= 1) {
        high[slot] = max(load(scores + i), high[slot]);
    }
    return reduce_max(max(high[0], high[1]));
}

inline bool all_of(const float* values, index_t n, float value) {
    index_t i = 0;
    while (i < n && values[i] == value) ++i;
    return i == n;
}

template <typename T>
void softmax_of(const SoftmaxArgs& args, index_t first, index_t count, float* scratch) {
    const bool drops = args.dropping.threshold > 0.0f;
    float* const factors = scratch + args.keys + kChunk;
    for (index_t row = first; row < first + count; ++row) {
        T* scores = static_cast<T*>(args.scores) + row * args.keys;
        const SoftmaxRow part(args, row);
        sweep(part.visible, [&](index_t i, auto extent, int) {
            store(scratch + i, part.score(scores, i, args.scale, extent), extent);
        });
        const float high = largest(scratch, part.visible);
        part.statistics[0] = high;
        part.statistics[1] = 0.0f;
        clear(scores, part.visible, args.keys);
        if (high == kNothing && all_of(scratch, part.visible, kNothing)) {
            clear(scores, 0, part.visible);
            continue;
        }
        Sums sums;
        sweep(part.visible, [&](index_t i, auto extent, int slot) {
            const F32 power = exp(sub(load(scratch + i, extent), set1(high)));
            store(scratch + i, power, extent);
            sums.part[slot] = add(sums.part[slot], keep(power, extent));
        });
        const float inverse = 1.0f / sums.total();
        part.statistics[1] = inverse;
        row_factors(args, row, part.visible, factors);
        sweep(part.visible, [&](index_t i, auto extent, int) {
            F32 p = mul(load(scratch + i, extent), set1(inverse));
            if (drops) p = mul(p, load(factors + i, extent));
            store(scores + i, p, extent);
        });
    }
}

template <typename T>
void softmax_backward_of(const SoftmaxArgs& args, index_t first, index_t count, float* scratch) {
    const bool drops = args.dropping.threshold > 0.0f;
    float* const factors = scratch + args.keys + kChunk;
    float* const flowing = factors + args.keys + kChunk;
    for (index_t row = first; row < first + count; ++row) {
        T* scores = static_cast<T*>(args.scores) + row * args.keys;
        T* gradients = static_cast<T*>(args.gradients) + row * args.keys;
        const SoftmaxRow part(args, row);
        const float high = part.statistics[0], inverse = part.statistics[1];
        const index_t visible = inverse == 0.0f ? 0 : part.visible;
        clear(scores, visible, args.keys);
        clear(gradients, visible, args.keys);
        row_factors(args, row, visible, factors);
        Sums sums;
        sweep(visible, [&](index_t i, auto extent, int slot) {
            const F32 power = exp(sub(part.score(scores, i, args.scale, extent), set1(high)));
            const F32 p = mul(power, set1(inverse));
            F32 gradient = load(gradients + i, extent), dropped = p;
            if (drops) {
                const F32 factor = load(factors + i, extent);
                gradient = mul(gradient, factor);
                dropped = mul(p, factor);
            }
            store(scratch + i, p, extent);
            store(flowing + i, gradient, extent);
            store(scores + i, dropped, extent);
            sums.part[slot] = add(sums.part[slot], keep(mul(p, gradient), extent));
        });
        const F32 mean = set1(sums.total());
        sweep(visible, [&](index_t i, auto extent, int) {
            const F32 flow = sub(load(flowing + i, extent), mean);
            store(gradients + i, mul(mul(load(scratch + i, extent), flow), set1(args.scale)),
                  extent);
        });
    }
}

constexpr DropoutKernels dropout_kernels = {
    {{dropout_add_of<float, float>, dropout_add_of<float, bf16_t>},
     {dropout_add_of<bf16_t, float>, dropout_add_of<bf16_t, bf16_t>}},
    {softmax_of<float>, softmax_of<bf16_t>},
    {softmax_backward_of<float>, softmax_backward_of<bf16_t>}};

}  // namespace
}  // namespace fastbert
