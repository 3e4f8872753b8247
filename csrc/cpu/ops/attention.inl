// Attention over packed sequences, written once over vec.
//
// One task is a slice of the queries of one sequence, for some heads, one after the other. The keys
// of a head are taken in blocks; a block of K is transposed and a block of V is copied into
// scratch, as panels that the inner loops stream through, and both products run as small matrix
// products with kRows x kVecs accumulators in registers. The softmax is the online form: a running
// maximum and sum per query, rescaled between key blocks. Sequences of up to key_block() keys need
// a single block, so nothing is ever rescaled there. Block sizes depend on head_dim alone and every
// query is summed in the order of its keys, so that its result depends on nothing but its own
// sequence.
#pragma once

#include "cpu/ops/attention.h"
#include "cpu/ops/attention_pack.inl"
#include "cpu/ops/attention_softmax.inl"
#include "cpu/ops/attention_tiles.inl"

namespace fastbert {
namespace {
namespace attention_detail {

// K and V of one block stay in half of a 1 MiB L2 cache, in float32, for head_dim up to 256.
inline index_t key_block(index_t head_dim) {
    const index_t fits = (index_t{32} << 10) / round_up(head_dim, 16) / kPanel * kPanel;
    return fits < kPanel ? kPanel : fits > 512 ? 512 : fits;
}

// float32 products: one step of an inner product is one element.
struct DotF32 : RegisterLayout {
    using Operand = F32;
    using Probability = float;
    static constexpr index_t elements_per_step = 1;
    static inline Operand operand(const float* p) { return load(p); }
    static inline Operand broadcast(const float* p) { return set1(*p); }
    static inline F32 dot(Operand a, Operand b, F32 sum) { return fma(a, b, sum); }

    static constexpr float unit = 1.0f;   // e^x = exponential(unit x)
    static constexpr bool fused = false;  // scale and shift of a score in one step
    static inline F32 exponential(F32 x) { return exp(x); }
    static inline void store_probabilities(float* p, F32 p0, F32 p1) {
        store(p, p0);
        store(p + F32::lanes, p1);
    }
    static inline void store_probabilities(float* p, F32 p0) { store(p, p0); }
    // The first `count` elements of one or two vectors.
    template <class T>
    static inline void store_out(T* out, F32 x, index_t count) {
        if (count >= F32::lanes) {
            store(out, x);
        } else {
            store_n(out, x, static_cast<int>(count));
        }
    }
    template <class T>
    static inline void store_out(T* out, F32 x0, F32 x1, index_t count) {
        store_out(out, x0, count);
        if (count > F32::lanes) store_out(out + F32::lanes, x1, count - F32::lanes);
    }

    // The steps of one row of Q.
    template <class T>
    static inline void copy_row(const T* src, index_t n, float* dst) {
        index_t i = 0;
        for (; i + F32::lanes <= n; i += F32::lanes) store(dst + i, load(src + i));
        if (i < n) store_n(dst + i, load_n(src + i, n - i), n - i);
    }
    // Sixteen steps of a row of which `left` elements remain, zeros behind them.
    template <class T>
    static inline F32 steps16(const T* src, index_t left) {
        return left >= 16 ? load(src) : load_n(src, static_cast<int>(left));
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
#if defined(__AMX_TILE__)
#include "cpu/ops/attention_amx.inl"
#endif

namespace fastbert {
namespace {
namespace attention_detail {

// Steps of an inner product of so many elements.
template <class Dot>
constexpr index_t steps_of(index_t elements) {
    return round_up((elements + Dot::elements_per_step - 1) / Dot::elements_per_step,
                    Dot::step_unit);
}

// Where everything is in a task's scratch: offsets in floats.
struct ScratchLayout {
    index_t query_steps;   // of <q, k>
    index_t score_stride;  // between the scores of two queries
    index_t value_width;   // head_dim rounded up to whole vectors
    index_t q, k, v, scores;
    index_t high, shift, rescale, inverse;  // of the queries of a block
    index_t row_max, row_sum, sums;         // of all queries; row_sum lane by lane
    index_t total;

    // keys: of a block, at most.
    template <class Dot>
    static ScratchLayout of(Dot, index_t head_dim, index_t queries, index_t keys) {
        ScratchLayout l;
        l.query_steps = steps_of<Dot>(head_dim);
        const index_t width = round_up(keys, kPanel);
        // An odd number of cache lines, so that the rows of a tile fall into different sets.
        l.score_stride = round_up(width, 32) + 16;
        l.value_width = round_up(head_dim, F32::lanes);
        index_t at = 0;
        const auto take = [&at](index_t n) {
            const index_t start = at;
            at += round_up(n, 16);
            return start;
        };
        l.q = take(round_up(queries, Dot::row_unit) * l.query_steps);
        l.k = take(width * l.query_steps);
        l.v = take(steps_of<Dot>(width) * l.value_width);
        l.scores = take(Dot::query_block * l.score_stride);
        l.high = take(Dot::query_block * F32::lanes);
        l.shift = take(Dot::query_block);
        l.rescale = take(Dot::query_block);
        l.inverse = take(Dot::query_block);
        l.row_max = take(queries);
        l.row_sum = take(queries * F32::lanes);
        l.sums = take(queries * l.value_width);
        l.total = at;
        return l;
    }
};

// Whether any key of the sequence has a bias. Without, the result must not depend on whether
// another sequence of the batch has one.
static inline bool any_bias(const float* key_bias, index_t keys) {
    for (index_t j = 0; j < keys; ++j) {
        if (!(key_bias[j] == 0.0f)) return true;
    }
    return false;
}

// The rows of k and v that a sequence's softmax is over.
struct Keys {
    index_t first, count;

    // Keys at the beginning that a bias hides, as that of a padded first column which is kept for a
    // pooler, are left out where others are seen: the others then have the bits they have without.
    // Not under causal or bias, which count keys from the first.
    static Keys of(const AttentionArgs& a, index_t sequence) {
        const index_t first = a.cu_seqlens_k[sequence];
        const index_t count = a.cu_seqlens_k[sequence + 1] - first;
        if (a.key_bias == nullptr || a.causal || a.bias != nullptr) return {first, count};
        index_t hidden = 0;
        while (hidden < count && a.key_bias[first + hidden] <= -__FLT_MAX__) ++hidden;
        if (hidden == count) return {first, count};
        return {first + hidden, count - hidden};
    }
};

// The head of k and v that a query head reads.
static inline index_t key_head(const AttentionArgs& a, index_t head) {
    return a.group > 1 ? head / a.group : head;
}

// What one head of a task reads and writes.
template <class T>
struct HeadRows {
    const T *q = nullptr, *k = nullptr, *v = nullptr;
    T* out = nullptr;
    index_t queries = 0, keys = 0;

    static HeadRows of(const AttentionArgs& a, const AttentionTask& task, index_t head) {
        const index_t query = a.cu_seqlens_q[task.sequence] + task.query_begin;
        const Keys keys = Keys::of(a, task.sequence);
        const index_t shared = key_head(a, head);
        return {
            static_cast<const T*>(a.q) + query * a.q_row_stride + head * a.q_head_stride,
            static_cast<const T*>(a.k) + keys.first * a.k_row_stride + shared * a.k_head_stride,
            static_cast<const T*>(a.v) + keys.first * a.v_row_stride + shared * a.v_head_stride,
            static_cast<T*>(a.out) + query * a.out_row_stride + head * a.out_head_stride,
            task.query_count,
            keys.count,
        };
    }
};

// Brings the rows of the next head into the second-level cache, a few at a time between the tiles
// of this one: they lie so far apart that no hardware prefetcher follows them. Rows of out too,
// which a store reads before it writes.
template <class T>
class Ahead {
  public:
    Ahead(const AttentionArgs& args, const HeadRows<T>& head, index_t steps)
        : a_(args),
          head_(head),
          rows_(head.queries > head.keys ? head.queries : head.keys),
          at_once_((rows_ + steps - 1) / steps) {}

    void step() {
        const index_t end = next_ + at_once_ < rows_ ? next_ + at_once_ : rows_;
        for (; next_ < end; ++next_) {
            if (next_ < head_.queries) {
                prefetch_row(head_.q + next_ * a_.q_row_stride, a_.head_dim);
                prefetch_row(head_.out + next_ * a_.out_row_stride, a_.head_dim);
            }
            if (next_ < head_.keys) {
                prefetch_row(head_.k + next_ * a_.k_row_stride, a_.head_dim);
                prefetch_row(head_.v + next_ * a_.v_row_stride, a_.head_dim);
            }
        }
    }

  private:
    const AttentionArgs& a_;
    const HeadRows<T> head_;
    const index_t rows_, at_once_;
    index_t next_ = 0;
};

// The slice of one task, for one head after the other.
template <class Dot, class T>
class Slice {
  public:
    Slice(const AttentionArgs& args, const AttentionTask& task, const AttentionTask* next,
          float* scratch)
        : a_(args),
          task_(task),
          next_(next),
          q_first_(args.cu_seqlens_q[task.sequence]),
          k_first_(Keys::of(args, task.sequence).first),
          hidden_keys_(args.cu_seqlens_k[task.sequence + 1] - k_first_ -
                       (args.cu_seqlens_q[task.sequence + 1] - q_first_)),
          panels_(args.head_dim),
          block_(key_block(args.head_dim)),
          scratch_(scratch) {
        const index_t len_k = args.cu_seqlens_k[task.sequence + 1] - k_first_;
        key_end_ = len_k;
        if (args.causal) {
            // Keys at or past this index are visible to no query of the task.
            const index_t last = task.query_begin + task.query_count + hidden_keys_;
            key_end_ = last < 0 ? 0 : last < key_end_ ? last : key_end_;
        }
        l_ = ScratchLayout::of(Dot{}, args.head_dim, task.query_count,
                               key_end_ < block_ ? key_end_ : block_);
        if (args.key_bias != nullptr && any_bias(args.key_bias + k_first_, len_k)) {
            key_bias_ = args.key_bias + k_first_;
        }
        // Biases are added to scaled scores. Otherwise scores are scaled in the exponential, for
        // which their order must be that of the scaled ones.
        scale_first_ = key_bias_ != nullptr || args.bias != nullptr || !(args.scale > 0.0f);
        factor_ = scale_first_ ? Dot::unit : args.scale * Dot::unit;
    }

    void run() {
        for (index_t head = task_.head_begin; head < task_.head_end; ++head) {
            if (key_end_ == 0) {
                write_zeros(HeadRows<T>::of(a_, task_, head));
            } else {
                run(head);
            }
        }
    }

  private:
    // Some queries of a head against some of its keys; both count from where the task's begin.
    struct Block {
        index_t head, query, rows, key, keys;
        bool first() const { return key == 0; }
    };
    // Rows of a block, shared out evenly among as few tiles as hold them.
    struct RowTiles {
        index_t rows, count;
        explicit RowTiles(index_t rows_of_block)
            : rows(rows_of_block), count((rows + Dot::tile_rows - 1) / Dot::tile_rows) {}
        index_t begin(index_t tile) const { return rows * tile / count; }
    };

    float* at(index_t offset) const { return scratch_ + offset; }
    HeadRows<T> rows_after(index_t head) const {
        if (head + 1 < task_.head_end) return HeadRows<T>::of(a_, task_, head + 1);
        if (next_ != nullptr) return HeadRows<T>::of(a_, *next_, next_->head_begin);
        return {};
    }

    void write_zeros(const HeadRows<T>& rows) const {
        for (index_t i = 0; i < task_.query_count; ++i) {
            for (index_t d = 0; d < a_.head_dim; ++d) rows.out[i * a_.out_row_stride + d] = T{};
        }
    }

    void run(index_t head) const {
        const HeadRows<T> rows = HeadRows<T>::of(a_, task_, head);
        const index_t key_panels = (key_end_ + kPanel - 1) / kPanel;
        const index_t tiles = (task_.query_count + Dot::tile_rows - 1) / Dot::tile_rows *
                              (key_panels + panels_.count);
        Ahead<T> ahead(a_, rows_after(head), tiles);
        for (index_t k0 = 0; k0 < key_end_; k0 += block_) {
            const index_t keys = key_end_ - k0 < block_ ? key_end_ - k0 : block_;
            const T* const v = rows.v + k0 * a_.v_row_stride;
            if (head == task_.head_begin) fetch_values(v, keys);
            if (!packed_before(head)) {
                pack_keys<Dot>(rows.k + k0 * a_.k_row_stride, a_.k_row_stride, a_.head_dim, keys,
                               l_.query_steps, at(l_.k));
                pack_values<Dot>(v, a_.v_row_stride, a_.head_dim, keys, panels_, at(l_.v));
            }
            for (index_t i0 = 0; i0 < task_.query_count; i0 += Dot::query_block) {
                const index_t left = task_.query_count - i0;
                const index_t queries = left < Dot::query_block ? left : Dot::query_block;
                const Block block{head, i0, queries, k0, keys};
                if (k0 == 0) copy_queries(block, rows);
                score(block, ahead);
                softmax(block);
                weigh(block, rows, ahead);
            }
        }
    }

    // Whether the head before left the very keys of this one in scratch.
    bool packed_before(index_t head) const {
        return head > task_.head_begin && key_end_ <= block_ &&
               key_head(a_, head) == key_head(a_, head - 1);
    }

    // For the head that none before has fetched.
    void fetch_values(const T* v, index_t keys) const {
        for (index_t j = 0; j < keys; ++j) prefetch_row(v + j * a_.v_row_stride, a_.head_dim);
    }

    void copy_queries(const Block& b, const HeadRows<T>& rows) const {
        for (index_t i = b.query; i < b.query + b.rows; ++i) {
            Dot::copy_row(rows.q + i * a_.q_row_stride, a_.head_dim, at(l_.q) + i * l_.query_steps);
        }
    }

    void score(const Block& b, Ahead<T>& ahead) const {
        for (index_t j = 0; j < b.keys; j += kPanel) {
            const index_t keys = b.keys - j < kPanel ? b.keys - j : kPanel;
            const index_t vectors = (keys + F32::lanes - 1) / F32::lanes;
            const float* const k = at(l_.k) + j * l_.query_steps;
            const RowTiles tiles(b.rows);
            for (index_t t = 0; t < tiles.count; ++t) {
                const index_t begin = tiles.begin(t), count = tiles.begin(t + 1) - begin;
                const ScoreTarget to{at(l_.scores) + begin * l_.score_stride + j, l_.score_stride,
                                     at(l_.high) + begin * F32::lanes, j == 0,
                                     keys - (vectors - 1) * F32::lanes};
                products_.score(at(l_.q) + (b.query + begin) * l_.query_steps, k, l_.query_steps,
                                count, vectors, to);
                ahead.step();
            }
        }
    }

    // How many keys of a block query `r` of it sees.
    index_t visible(const Block& b, index_t r) const {
        if (!a_.causal) return b.keys;
        const index_t limit = task_.query_begin + b.query + r + hidden_keys_ + 1 - b.key;
        return limit < 0 ? 0 : limit < b.keys ? limit : b.keys;
    }

    void softmax(const Block& b) const {
        const index_t step_keys = Dot::step_unit * Dot::elements_per_step;
        const index_t width =
            round_up(b.keys, step_keys > F32::lanes ? step_keys : index_t{F32::lanes});
        float* const row_max = at(l_.row_max) + b.query;
        if (scale_first_ || a_.causal) {
            for (index_t r = 0; r < b.rows; ++r) add_biases(b, r);
        }
        // Folds of vectors by themselves, so that those of many rows overlap.
        for (index_t r = 0; r < b.rows; ++r) {
            const float high = reduce_max(load(at(l_.high) + r * F32::lanes));
            if (b.first()) {
                row_max[r] = high;
                at(l_.shift)[r] = high * factor_;
            } else {
                const RowShift row = advance_row<Dot>(row_max[r], high, factor_);
                row_max[r] = row.high;
                at(l_.shift)[r] = row.shift;
                at(l_.rescale)[r] = row.rescale;
            }
        }
        float* const row_sum = at(l_.row_sum) + b.query * F32::lanes;
        for (index_t r = 0; r < b.rows; ++r) {
            F32 sum = exponentials<Dot>(at(l_.scores) + r * l_.score_stride,
                                        round_up(visible(b, r), F32::lanes), width, factor_,
                                        row_max[r], at(l_.shift)[r]);
            float* const before = row_sum + r * F32::lanes;
            if (!b.first()) sum = fma(load(before), set1(at(l_.rescale)[r]), sum);
            store(before, sum);
        }
        if (b.key + b.keys < key_end_) return;
        float* const inverse = at(l_.inverse);
        for (index_t r = 0; r < b.rows; ++r)
            inverse[r] = reduce_add(load(row_sum + r * F32::lanes));
        for (index_t r = 0; r < b.rows; r += F32::lanes) {
            // Zero where no key was visible. Where a sum is NaN, so is what it divides.
            const F32 sum = load(inverse + r);
            store(inverse + r, select(less(zero(), sum), div(set1(1.0f), sum), zero()));
        }
    }

    void add_biases(const Block& b, index_t r) const {
        const index_t query = task_.query_begin + b.query + r;
        const float* bias = nullptr;
        if (a_.bias != nullptr) {
            bias = a_.bias + task_.sequence * a_.bias_batch_stride + b.head * a_.bias_head_stride +
                   query * a_.bias_query_stride + b.key;
        }
        bias_row(at(l_.scores) + r * l_.score_stride, visible(b, r), scale_first_ ? a_.scale : 1.0f,
                 key_bias_ == nullptr ? nullptr : key_bias_ + b.key, bias,
                 at(l_.high) + r * F32::lanes);
    }

    void weigh(const Block& b, const HeadRows<T>& rows, Ahead<T>& ahead) const {
        const index_t steps = steps_of<Dot>(b.keys);
        const float* panel = at(l_.v);
        for (index_t c = 0; c < panels_.count; ++c) {
            const index_t vectors = panels_.begin(c + 1) - panels_.begin(c);
            const index_t column = panels_.begin(c) * F32::lanes;
            const RowTiles tiles(b.rows);
            for (index_t t = 0; t < tiles.count; ++t) {
                const index_t begin = tiles.begin(t), count = tiles.begin(t + 1) - begin;
                const ValueTarget<T> to{
                    at(l_.sums) + (b.query + begin) * l_.value_width + column,
                    l_.value_width,
                    at(l_.rescale) + begin,
                    at(l_.inverse) + begin,
                    rows.out + (b.query + begin) * a_.out_row_stride + column,
                    a_.out_row_stride,
                    a_.head_dim - column,
                    b.first(),
                    b.key + b.keys == key_end_,
                };
                products_.value(at(l_.scores) + begin * l_.score_stride, l_.score_stride, panel,
                                steps, count, vectors, to);
                ahead.step();
            }
            panel += steps * vectors * F32::lanes;
        }
    }

    const AttentionArgs& a_;
    const AttentionTask& task_;
    const AttentionTask* const next_;
    const index_t q_first_, k_first_;
    const index_t hidden_keys_;  // len_k - len_q
    const ValuePanels panels_;
    const index_t block_;
    float* const scratch_;
    index_t key_end_;
    ScratchLayout l_;
    const typename Dot::template Products<Dot, T> products_{};
    const float* key_bias_ = nullptr;
    bool scale_first_;
    float factor_;
};

template <class Dot, class T>
struct Entry {
    static void run(const AttentionArgs& a, const AttentionTask& task, const AttentionTask* next,
                    void* scratch) {
        Slice<Dot, T>(a, task, next, static_cast<float*>(scratch)).run();
    }
    static index_t scratch_bytes(index_t head_dim, index_t query_count) {
        return ScratchLayout::of(Dot{}, head_dim, query_count, key_block(head_dim)).total *
               index_t{sizeof(float)};
    }
    static constexpr AttentionKernel kernel{run, scratch_bytes, Dot::query_block};
};

template <class Dot>
static void exponential_of_array(const float* x, float* y, index_t n) {
    for (index_t i = 0; i < n; i += F32::lanes) {
        const int count = static_cast<int>(n - i < F32::lanes ? n - i : F32::lanes);
        const F32 t = mul(load_n(x + i, count), set1(Dot::unit));
        store_n(y + i, Dot::exponential(t), count);
    }
}

}  // namespace attention_detail

#if defined(__AMX_TILE__)
using AttentionBf16 = attention_detail::DotAmx;
#elif defined(__AVX512BF16__)
using AttentionBf16 = attention_detail::DotBf16;
#else
using AttentionBf16 = attention_detail::DotF32;
#endif

constexpr AttentionKernels attention_kernels{
    attention_detail::Entry<attention_detail::DotF32, float>::kernel,
    attention_detail::Entry<AttentionBf16, bf16_t>::kernel,
    attention_detail::Entry<attention_detail::DotF32, f16_t>::kernel,
    attention_detail::exponential_of_array<AttentionBf16>,
};

}  // namespace
}  // namespace fastbert
