// Attention over packed sequences, written once over vec.
//
// One task is a slice of the queries of one head. Its keys are taken in blocks; a block of K is
// transposed and a block of V is copied into scratch, as panels that the inner loops stream
// through, and both products run as small matrix products with kRows x kVecs accumulators in
// registers. The softmax is the online form: a running maximum and sum per query, rescaled between
// key blocks. Sequences of up to key_block() keys need a single block, so nothing is ever rescaled
// there. Block sizes depend on head_dim alone and every query is summed in the order of its keys,
// so that its result depends on nothing but its own sequence.
#pragma once

#include "cpu/ops/attention.h"
#include "cpu/vec/transpose.h"

namespace fastbert {
namespace {
namespace attention_detail {

constexpr int kRows = 6;  // queries per register tile
// 6 x 4 accumulators, 4 operands and a broadcast fill 29 of 32 registers; 6 x 2 fill 15 of 16.
constexpr int kVecs = F32::lanes == 16 ? 4 : 2;
constexpr index_t kPanel = kVecs * F32::lanes;  // keys per panel of K
constexpr index_t kQueryBlock = 4 * kRows;      // queries whose scores are in scratch at once

constexpr index_t round_up(index_t n, index_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

// K and V of one block stay in half of a 1 MiB L2 cache, in float32, for head_dim up to 256.
inline index_t key_block(index_t head_dim) {
    const index_t fits = (index_t{32} << 10) / round_up(head_dim, 16) / kPanel * kPanel;
    return fits < kPanel ? kPanel : fits > 512 ? 512 : fits;
}

// V is cut into panels of nearly equal width, at most kVecs vectors each.
struct ValuePanels {
    index_t vectors, count;
    explicit ValuePanels(index_t head_dim)
        : vectors((head_dim + F32::lanes - 1) / F32::lanes), count((vectors + kVecs - 1) / kVecs) {}
    index_t begin(index_t panel) const { return vectors * panel / count; }
};

// float32 products: one step of an inner product is one element.
struct DotF32 {
    using Operand = F32;
    using Probability = float;
    static constexpr index_t elements_per_step = 1;
    static inline Operand operand(const float* p) { return load(p); }
    static inline Operand broadcast(const float* p) { return set1(*p); }
    static inline F32 dot(Operand a, Operand b, F32 sum) { return fma(a, b, sum); }

    static inline F32 exponential(F32 x) { return exp(x); }
    static inline void store_probabilities(float* p, F32 p0, F32 p1) {
        store(p, p0);
        store(p + F32::lanes, p1);
    }
    static inline void store_probabilities(float* p, F32 p0) { store(p, p0); }

    // The steps of one row of Q or K.
    template <class T>
    static inline void copy_row(const T* src, index_t n, float* dst) {
        index_t i = 0;
        for (; i + F32::lanes <= n; i += F32::lanes) store(dst + i, load(src + i));
        if (i < n) store_n(dst + i, load_n(src + i, n - i), n - i);
    }
    // One step of V: `vectors` vectors of the row, zero-filled past head_dim.
    template <class T>
    static inline void value_step(const T* row, const T*, index_t n, index_t vectors, float* dst) {
        for (index_t i = 0; i < vectors; ++i) {
            const index_t left = n - i * F32::lanes;
            store(dst + i * F32::lanes, left >= F32::lanes ? load(row + i * F32::lanes)
                                                           : load_n(row + i * F32::lanes, left));
        }
    }
};

}  // namespace attention_detail
}  // namespace
}  // namespace fastbert

#if defined(__AVX512BF16__)
#include "cpu/ops/attention_bf16.inl"
#endif

namespace fastbert {
namespace {
namespace attention_detail {

// Where everything is in a task's scratch.
struct Layout {
    index_t query_steps;   // steps of <q, k>
    index_t key_block;     // keys per block
    index_t score_stride;  // floats between the scores of two queries
    index_t value_width;   // head_dim rounded up to whole vectors
    index_t queries;       // query rows with scratch
    index_t q, k, v, scores, sums, row_max, row_sum, rescale, staging, total;  // offsets in floats

    template <class Dot>
    static Layout of(Dot, index_t head_dim, index_t query_count) {
        Layout l;
        l.query_steps = (head_dim + Dot::elements_per_step - 1) / Dot::elements_per_step;
        l.key_block = attention_detail::key_block(head_dim);
        // Not a power of two, so that the rows of a tile fall into different cache sets.
        l.score_stride = l.key_block + 16;
        l.value_width = round_up(head_dim, F32::lanes);
        l.queries = round_up(query_count, kQueryBlock);
        index_t at = 0;
        const auto take = [&at](index_t n) {
            const index_t start = at;
            at += round_up(n, 16);
            return start;
        };
        l.q = take(l.queries * l.query_steps);
        l.k = take(l.key_block * l.query_steps);
        l.v = take(l.key_block / Dot::elements_per_step * l.value_width);
        l.scores = take(kQueryBlock * l.score_stride);
        l.sums = take(l.queries * l.value_width);
        l.row_max = take(l.queries);
        l.row_sum = take(l.queries);
        l.rescale = take(kQueryBlock);
        l.staging = take(16 * l.query_steps);
        l.total = at;
        return l;
    }
};

// acc[r][c] = sum over steps of a[r][step] * b[step][c].
template <class Dot, int Vecs>
static inline void multiply_tile(const float* a, index_t a_stride, const float* b, index_t steps,
                                 F32 (&acc)[kRows][Vecs]) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < Vecs; ++c) acc[r][c] = set1(0.0f);
    }
    for (index_t s = 0; s < steps; ++s) {
        typename Dot::Operand column[Vecs];
#pragma GCC unroll 8
        for (int c = 0; c < Vecs; ++c) column[c] = Dot::operand(b + c * F32::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const typename Dot::Operand row = Dot::broadcast(a + r * a_stride + s);
#pragma GCC unroll 8
            for (int c = 0; c < Vecs; ++c) acc[r][c] = Dot::dot(row, column[c], acc[r][c]);
        }
        b += Vecs * F32::lanes;
    }
}

template <class Dot, int Vecs>
static void score_tile(const float* q, const float* k, index_t steps, float scale, float* scores,
                       index_t scores_stride) {
    F32 acc[kRows][Vecs];
    multiply_tile<Dot, Vecs>(q, steps, k, steps, acc);
    const F32 factor = set1(scale);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < Vecs; ++c) {
            store(scores + r * scores_stride + c * F32::lanes, mul(acc[r][c], factor));
        }
    }
}

// sums = P V in the first key block, sums * rescale + P V in the later ones.
template <class Dot, int Vecs>
static void value_tile(const float* p, index_t p_stride, const float* v, index_t steps,
                       const float* rescale, bool first, float* sums, index_t sums_stride) {
    F32 acc[kRows][Vecs];
    multiply_tile<Dot, Vecs>(p, p_stride, v, steps, acc);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        float* out = sums + r * sums_stride;
        if (first) {
#pragma GCC unroll 8
            for (int c = 0; c < Vecs; ++c) store(out + c * F32::lanes, acc[r][c]);
        } else {
            const F32 factor = set1(rescale[r]);
#pragma GCC unroll 8
            for (int c = 0; c < Vecs; ++c) {
                store(out + c * F32::lanes, fma(load(out + c * F32::lanes), factor, acc[r][c]));
            }
        }
    }
}

using ScoreTile = void (*)(const float*, const float*, index_t, float, float*, index_t);
using ValueTile = void (*)(const float*, index_t, const float*, index_t, const float*, bool, float*,
                           index_t);

template <class Dot>
static inline ScoreTile score_tile_of(index_t vectors) {
    if constexpr (kVecs == 4) {
        if (vectors == 3) return score_tile<Dot, 3>;
        if (vectors == 4) return score_tile<Dot, 4>;
    }
    return vectors == 1 ? score_tile<Dot, 1> : score_tile<Dot, 2>;
}

template <class Dot>
static inline ValueTile value_tile_of(index_t vectors) {
    if constexpr (kVecs == 4) {
        if (vectors == 3) return value_tile<Dot, 3>;
        if (vectors == 4) return value_tile<Dot, 4>;
    }
    return vectors == 1 ? value_tile<Dot, 1> : value_tile<Dot, 2>;
}

template <class Dot, class T>
static void pack_keys(const T* k, index_t row_stride, const T* v, index_t v_stride,
                      index_t head_dim, index_t keys, const Layout& l, float* staging,
                      float* packed) {
    for (index_t first = 0; first < keys; first += kPanel) {
        // The last panel is as narrow as whole vectors allow: short sequences waste little.
        const index_t in_panel = keys - first < kPanel ? keys - first : kPanel;
        const index_t width = round_up(in_panel, F32::lanes);
        for (index_t at = 0; at < width; at += 16) {
            index_t rows = in_panel - at < 16 ? in_panel - at : 16;
            if (rows < 0) rows = 0;
            for (index_t r = 0; r < rows; ++r) {
                const T* const row = k + (first + at + r) * row_stride;
                Dot::copy_row(row, head_dim, staging + r * l.query_steps);
                // V is read next, row by row at strides that hardware prefetching does not follow.
                const T* const value = v + (first + at + r) * v_stride;
                for (index_t c = 0; c < head_dim; c += index_t{64} / index_t{sizeof(T)}) {
                    __builtin_prefetch(value + c);
                }
            }
            const index_t columns = width - at < 16 ? width - at : 16;
            for (index_t i = rows * l.query_steps; i < columns * l.query_steps; ++i) staging[i] = 0;
            transpose(staging, l.query_steps, columns, l.query_steps, packed + at, width);
        }
        packed += l.query_steps * width;
    }
}

template <class Dot, class T>
static void pack_values(const T* v, index_t row_stride, index_t head_dim, index_t keys,
                        const ValuePanels& panels, float* packed) {
    for (index_t p = 0; p < panels.count; ++p) {
        const index_t begin = panels.begin(p), vectors = panels.begin(p + 1) - begin;
        const index_t column = begin * F32::lanes;
        for (index_t j = 0; j < keys; j += Dot::elements_per_step) {
            const T* row = v + j * row_stride + column;
            const T* next = j + 1 < keys ? row + row_stride : nullptr;
            Dot::value_step(row, next, head_dim - column, vectors, packed);
            packed += vectors * F32::lanes;
        }
    }
}

constexpr float kLaneNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Turns the scores of one query into unnormalised probabilities, in place, and advances its
// running maximum and sum. Only the first `visible` of `keys` scores count. Returns the factor that
// the sums of earlier key blocks must be multiplied with.
template <class Dot>
static inline float softmax_row(float* scores, index_t visible, index_t keys, const float* key_bias,
                                const float* bias, float& row_max, float& row_sum) {
    constexpr float infinity = __builtin_inff();
    using P = typename Dot::Probability;
    P* p = reinterpret_cast<P*>(scores);
    const index_t p_keys = round_up(keys, Dot::elements_per_step);
    if (visible <= 0) {
        for (index_t j = 0; j < p_keys; ++j) p[j] = P{};
        return 1.0f;
    }
    const index_t whole = visible / F32::lanes * F32::lanes;
    if (key_bias != nullptr || bias != nullptr) {
        for (index_t j = 0; j < whole; j += F32::lanes) {
            F32 s = load(scores + j);
            if (key_bias != nullptr) s = add(s, load(key_bias + j));
            if (bias != nullptr) s = add(s, load(bias + j));
            store(scores + j, s);
        }
        for (index_t j = whole; j < visible; ++j) {
            if (key_bias != nullptr) scores[j] += key_bias[j];
            if (bias != nullptr) scores[j] += bias[j];
        }
    }
    // The scores after the last whole vector, -inf past `visible`. Selected in a register: writing
    // them one by one and reading the vector back would stall on the unfinished stores.
    F32 high0 = set1(-infinity), high1 = high0;
    const bool partial = whole < visible;
    if (partial) {
        const Mask seen = less(load(kLaneNumbers), set1(static_cast<float>(visible - whole)));
        high1 = select(seen, load(scores + whole), high0);
    }
    const F32 last = high1;
    index_t j = 0;
    for (; j + 2 * F32::lanes <= whole; j += 2 * F32::lanes) {
        high0 = max(high0, load(scores + j));
        high1 = max(high1, load(scores + j + F32::lanes));
    }
    if (j < whole) high0 = max(high0, load(scores + j));
    const float block_max = reduce_max(max(high0, high1));
    const float new_max = block_max > row_max ? block_max : row_max;
    // Where every score so far is -inf, subtracting it would give NaN; any finite value gives
    // zeros.
    const F32 shift = set1(new_max == -infinity ? 0.0f : new_max);

    F32 sum0 = set1(0.0f), sum1 = sum0;
    for (j = 0; j + 2 * F32::lanes <= whole; j += 2 * F32::lanes) {
        const F32 p0 = Dot::exponential(sub(load(scores + j), shift));
        const F32 p1 = Dot::exponential(sub(load(scores + j + F32::lanes), shift));
        sum0 = add(sum0, p0);
        sum1 = add(sum1, p1);
        Dot::store_probabilities(p + j, p0, p1);
    }
    if (j < whole) {
        const F32 p0 = Dot::exponential(sub(load(scores + j), shift));
        sum0 = add(sum0, p0);
        Dot::store_probabilities(p + j, p0);
        j += F32::lanes;
    }
    if (partial) {
        const F32 p1 = Dot::exponential(sub(last, shift));
        sum1 = add(sum1, p1);
        Dot::store_probabilities(p + j, p1);
        j += F32::lanes;
    }
    for (; j < p_keys; ++j) p[j] = P{};

    // Where nothing above -inf came before, there is nothing to rescale.
    float factor = 1.0f;
    if (row_max != new_max && row_max != -infinity) {
        factor = reduce_max(exp(set1(row_max - new_max)));
    }
    row_max = new_max;
    row_sum = __builtin_fmaf(row_sum, factor, reduce_add(add(sum0, sum1)));
    return factor;
}

template <class Dot, class T>
static void run_task(const AttentionArgs& a, const AttentionTask& task, void* scratch) {
    const index_t q_first = a.cu_seqlens_q[task.sequence], k_first = a.cu_seqlens_k[task.sequence];
    const index_t len_q = a.cu_seqlens_q[task.sequence + 1] - q_first;
    const index_t len_k = a.cu_seqlens_k[task.sequence + 1] - k_first;
    const Layout l = Layout::of(Dot{}, a.head_dim, task.query_count);
    const ValuePanels panels(a.head_dim);
    float* const base = static_cast<float*>(scratch);
    float *const q = base + l.q, *const k = base + l.k, *const v = base + l.v;
    float *const scores = base + l.scores, *const sums = base + l.sums;
    float *const row_max = base + l.row_max, *const row_sum = base + l.row_sum;
    float* const rescale = base + l.rescale;

    const T* const q_rows = static_cast<const T*>(a.q) +
                            (q_first + task.query_begin) * a.q_row_stride +
                            task.head * a.q_head_stride;
    const T* const k_rows =
        static_cast<const T*>(a.k) + k_first * a.k_row_stride + task.head * a.k_head_stride;
    const T* const v_rows =
        static_cast<const T*>(a.v) + k_first * a.v_row_stride + task.head * a.v_head_stride;
    T* const out = static_cast<T*>(a.out) + (q_first + task.query_begin) * a.out_row_stride +
                   task.head * a.out_head_stride;

    const index_t query_rows = round_up(task.query_count, kRows);
    for (index_t i = 0; i < task.query_count; ++i) {
        Dot::copy_row(q_rows + i * a.q_row_stride, a.head_dim, q + i * l.query_steps);
    }
    for (index_t i = task.query_count * l.query_steps; i < query_rows * l.query_steps; ++i)
        q[i] = 0;
    for (index_t i = 0; i < task.query_count; ++i) {
        row_max[i] = -__builtin_inff();
        row_sum[i] = 0.0f;
    }
    // Keys at or past this index are visible to no query of the task.
    index_t key_end = len_k;
    if (a.causal) {
        const index_t last = task.query_begin + task.query_count + len_k - len_q;
        key_end = last < 0 ? 0 : last < len_k ? last : len_k;
    }
    const ScoreTile full_score_tile = score_tile_of<Dot>(kVecs);

    for (index_t k0 = 0; k0 < key_end; k0 += l.key_block) {
        const index_t keys = key_end - k0 < l.key_block ? key_end - k0 : l.key_block;
        const index_t value_steps = (keys + Dot::elements_per_step - 1) / Dot::elements_per_step;
        pack_keys<Dot>(k_rows + k0 * a.k_row_stride, a.k_row_stride, v_rows + k0 * a.v_row_stride,
                       a.v_row_stride, a.head_dim, keys, l, base + l.staging, k);
        pack_values<Dot>(v_rows + k0 * a.v_row_stride, a.v_row_stride, a.head_dim, keys, panels, v);

        for (index_t i0 = 0; i0 < task.query_count; i0 += kQueryBlock) {
            const index_t rows =
                task.query_count - i0 < kQueryBlock ? task.query_count - i0 : kQueryBlock;
            for (index_t j0 = 0; j0 < keys; j0 += kPanel) {
                const index_t width = keys - j0 < kPanel ? round_up(keys - j0, F32::lanes) : kPanel;
                const ScoreTile tile =
                    width == kPanel ? full_score_tile : score_tile_of<Dot>(width / F32::lanes);
                for (index_t r = 0; r < rows; r += kRows) {
                    tile(q + (i0 + r) * l.query_steps, k + j0 * l.query_steps, l.query_steps,
                         a.scale, scores + r * l.score_stride + j0, l.score_stride);
                }
            }
            for (index_t r = 0; r < rows; ++r) {
                const index_t i = task.query_begin + i0 + r;
                index_t visible = keys;
                if (a.causal) {
                    const index_t limit = i + len_k - len_q + 1 - k0;
                    visible = limit < keys ? limit : keys;
                }
                const float* bias = a.bias == nullptr
                                        ? nullptr
                                        : a.bias + task.sequence * a.bias_batch_stride +
                                              task.head * a.bias_head_stride +
                                              i * a.bias_query_stride + k0;
                rescale[r] =
                    softmax_row<Dot>(scores + r * l.score_stride, visible, keys,
                                     a.key_bias == nullptr ? nullptr : a.key_bias + k_first + k0,
                                     bias, row_max[i0 + r], row_sum[i0 + r]);
            }
            const float* panel = v;
            for (index_t c = 0; c < panels.count; ++c) {
                const index_t begin = panels.begin(c), vectors = panels.begin(c + 1) - begin;
                const ValueTile tile = value_tile_of<Dot>(vectors);
                for (index_t r = 0; r < rows; r += kRows) {
                    tile(scores + r * l.score_stride, l.score_stride, panel, value_steps,
                         rescale + r, k0 == 0, sums + (i0 + r) * l.value_width + begin * F32::lanes,
                         l.value_width);
                }
                panel += value_steps * vectors * F32::lanes;
            }
        }
    }
    for (index_t i = 0; i < task.query_count; ++i) {
        T* row = out + i * a.out_row_stride;
        const float* sum = sums + i * l.value_width;
        // NaN counts as something.
        const F32 factor = set1(key_end > 0 && row_sum[i] != 0.0f ? 1.0f / row_sum[i] : 0.0f);
        for (index_t d = 0; d < a.head_dim; d += F32::lanes) {
            const F32 value = key_end > 0 ? mul(load(sum + d), factor) : set1(0.0f);
            if (a.head_dim - d >= F32::lanes) {
                store(row + d, value);
            } else {
                store_n(row + d, value, a.head_dim - d);
            }
        }
    }
}

template <class Dot, class T>
struct Entry {
    static void run(const AttentionArgs& a, const AttentionTask& task, void* scratch) {
        run_task<Dot, T>(a, task, scratch);
    }
    static index_t scratch_bytes(index_t head_dim, index_t query_count) {
        return Layout::of(Dot{}, head_dim, query_count).total * index_t{sizeof(float)};
    }
    static constexpr AttentionKernel kernel{run, scratch_bytes};
};

}  // namespace attention_detail

#if defined(__AVX512BF16__)
using AttentionBf16 = attention_detail::DotBf16;
#else
using AttentionBf16 = attention_detail::DotF32;
#endif

constexpr AttentionKernels attention_kernels{
    attention_detail::Entry<attention_detail::DotF32, float>::kernel,
    attention_detail::Entry<AttentionBf16, bf16_t>::kernel,
    attention_detail::Entry<attention_detail::DotF32, f16_t>::kernel,
};

}  // namespace
}  // namespace fastbert
