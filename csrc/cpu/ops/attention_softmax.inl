// The softmax of attention, over scores in scratch. Included by attention.inl.
//
// Scores are kept as the products gave them and scaled on the way into the exponential, with a
// query's largest score m and factor = scale * unit (unit: log2(e) where the exponential is 2^t).
// Where probabilities are rounded to 16 bits, t = score * factor - shift is one fused step: shift =
// m * factor is rounded, which leaves t at most half its last place above 0; all keys of the query
// share that, so that it cancels. In float32 t = (score - m) * factor, so that the largest
// probability is exactly 1 and a query with a single key gets that key's value to the last bit.
#pragma once

#include "cpu/ops/attention_tiles.inl"

namespace fastbert {
namespace {
namespace attention_detail {

// Beyond this a shift is off by a quarter or more, and may be infinite: such rows (all keys
// masked by finfo.min, NaN, or products nobody means) are shifted score by score instead.
constexpr float kLargestShift = 0x1p22f;

static inline bool is_regular(float shift) { return __builtin_fabsf(shift) < kLargestShift; }

// The largest score so far of one query, and what follows from it.
struct RowShift {
    float high;     // the new largest score
    float shift;    // of t; only where is_regular()
    float rescale;  // of the sums of earlier blocks of keys
};

template <class Dot>
static inline RowShift advance_row(float high_before, float high_of_block, float factor) {
    RowShift row;
    row.high = high_of_block > high_before ? high_of_block : high_before;
    row.shift = row.high * factor;
    row.rescale = 1.0f;
    // Where nothing above -inf came before, there is nothing to rescale.
    if (row.high == high_before || high_before == -kInfinity) return row;
    const float shift_before = high_before * factor;
    const float step = Dot::fused && is_regular(row.shift) && is_regular(shift_before)
                           ? shift_before - row.shift
                           : (high_before - row.high) * factor;
    row.rescale = reduce_max(exp(set1(step * (1.0f / Dot::unit))));
    return row;
}

// The first `visible` scores of one query as scale * score + biases, -inf behind them up to the end
// of a vector; high becomes the largest of each lane.
static inline void bias_row(float* scores, index_t visible, float scale, const float* key_bias,
                            const float* bias, float* high) {
    F32 largest = set1(-kInfinity);
    for (index_t j = 0; j < visible; j += F32::lanes) {
        const bool whole = visible - j >= F32::lanes;
        const int n = whole ? F32::lanes : static_cast<int>(visible - j);
        F32 sum = mul(load(scores + j), set1(scale));
        if (key_bias != nullptr) {
            sum = add(sum, whole ? load(key_bias + j) : load_n(key_bias + j, n));
        }
        if (bias != nullptr) sum = add(sum, whole ? load(bias + j) : load_n(bias + j, n));
        sum = select(first_of_vector(n), sum, set1(-kInfinity));
        store(scores + j, sum);
        largest = max(largest, sum);
    }
    store(high, largest);
}

// Turns the first `seen` of `width` scores of one query, both in whole vectors, into unnormalised
// probabilities, in place, and the others into zeros; returns their sum, lane by lane.
template <class Dot>
static inline F32 exponentials(float* scores, index_t seen, index_t width, float factor, float high,
                               float shift) {
    // Where every score so far is -inf, subtracting it would give NaN; any finite value gives
    // zeros.
    const F32 subtrahend = set1(high == -kInfinity ? 0.0f : high);
    if (Dot::fused && __builtin_expect(!is_regular(shift), 0)) {
        for (index_t j = 0; j < seen; j += F32::lanes) {
            store(scores + j, sub(load(scores + j), subtrahend));
        }
        shift = 0.0f;
    }
    typename Dot::Probability* const p = reinterpret_cast<typename Dot::Probability*>(scores);
    const F32 scale = set1(factor), back = set1(-shift);
    const auto exponential = [&](index_t j) {
        const F32 score = load(scores + j);
        return Dot::exponential(Dot::fused ? fma(score, scale, back)
                                           : mul(sub(score, subtrahend), scale));
    };
    F32 sum0 = set1(0.0f), sum1 = sum0;
    index_t j = 0;
    for (; j + 2 * F32::lanes <= seen; j += 2 * F32::lanes) {
        const F32 p0 = exponential(j);
        const F32 p1 = exponential(j + F32::lanes);
        sum0 = add(sum0, p0);
        sum1 = add(sum1, p1);
        Dot::store_probabilities(p + j, p0, p1);
    }
    if (j < seen) {
        const F32 p0 = exponential(j);
        sum0 = add(sum0, p0);
        Dot::store_probabilities(p + j, p0);
        j += F32::lanes;
    }
    for (; j < width; j += F32::lanes) Dot::store_probabilities(p + j, set1(0.0f));
    return add(sum0, sum1);
}

}  // namespace attention_detail
}  // namespace
}  // namespace fastbert
