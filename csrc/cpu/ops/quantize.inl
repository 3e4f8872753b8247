#pragma once

#include <cstring>

#include "cpu/ops/quantize.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

struct RowRange {
    float low, high;
};

// What is quantised: the values of a row, or the values times a factor of their column.
template <typename T, bool scaled>
struct Row {
    const T* x;
    const float* factor;

    template <class Extent>
    F32 at(index_t i, Extent extent) const {
        const F32 v = load(x + i, extent);
        if constexpr (scaled) return mul(v, load(factor + i, extent));
        return v;
    }
};

// Lanes past the end of a partial vector are 0, which every range contains.
template <class Source>
inline RowRange range_of(const Source& row, index_t k) {
    F32 low[4] = {zero(), zero(), zero(), zero()};
    F32 high[4] = {zero(), zero(), zero(), zero()};
    sweep(k, [&](index_t i, auto extent, int slot) {
        const F32 v = row.at(i, extent);
        low[slot % 4] = min(v, low[slot % 4]);
        high[slot % 4] = max(v, high[slot % 4]);
    });
    return {reduce_min(min(min(low[0], low[1]), min(low[2], low[3]))),
            reduce_max(max(max(high[0], high[1]), max(high[2], high[3])))};
}

template <class Source>
inline bool has_nan(const Source& row, index_t k) {
    for (index_t i = 0; i < k; ++i) {
        const float v = reduce_add(row.at(i, Part{1}));  // the other lanes are 0
        if (v != v) return true;
    }
    return false;
}

// Writes q; true when some value was NaN, which to_i32 makes the lowest integer. An infinite one
// would have made the range infinite.
template <bool divides, class Source>
inline bool quantize_row(const Source& row, index_t k, float scale, std::int32_t zero_point,
                         std::uint8_t* q) {
    const F32 s = set1(scale);
    const F32 inverse = set1(1.0f / scale);
    const I32 z = set1_i32(zero_point);
    const auto level = [&](index_t i, auto extent) {
        const F32 v = row.at(i, extent);
        F32 y;
        if constexpr (divides) {
            y = div(v, s);
        } else {
            // x / scale to the last bit (Markstein: the remainder of the product with the rounded
            // reciprocal is exact under fma), in 3 operations where a division takes the unit for
            // 10 cycles.
            const F32 approximate = mul(v, inverse);
            y = fma(fnma(approximate, s, v), inverse, approximate);
        }
        // |x / scale| is at most 255, or 383 where scale is subnormal.
        return add(to_i32(y), z);
    };
    constexpr index_t lanes = F32::lanes;
    I32 lowest = z;
    index_t i = 0;
    for (; i + 4 * lanes <= k; i += 4 * lanes) {
        const I32 a = level(i, Whole{}), b = level(i + lanes, Whole{});
        const I32 c = level(i + 2 * lanes, Whole{}), d = level(i + 3 * lanes, Whole{});
        lowest = min(lowest, min(min(a, b), min(c, d)));
        store_u8(q + i, a, b, c, d);
    }
    for (; i < k; i += lanes) {
        const Part part{static_cast<int>(k - i < lanes ? k - i : lanes)};
        const I32 a = level(i, part);
        lowest = min(lowest, a);
        store_u8_n(q + i, a, part.n);
    }
    return reduce_min(to_f32(lowest)) < -1e9f;
}

template <typename T, bool scaled>
inline void quantize_all(const QuantizeArgs& a, index_t first, index_t count) {
    const index_t repeats = a.columns.repeats;
    for (index_t r = first; r < first + count; ++r) {
        const Row<T, scaled> row{static_cast<const T*>(a.x) + r * a.x_stride, a.columns.factor};
        std::uint8_t* q = a.q + r * a.q_stride;
        const RowRange range = range_of(row, a.k);
        float scale = (range.high - range.low) / 255.0f;
        if (scale == 0.0f) scale = 1.0f;
        bool finite = scale < __builtin_inff();
        std::int32_t zero_point = 0;
        if (finite) {
            zero_point = static_cast<std::int32_t>(__builtin_rintf(-range.low / scale));
            // Outside these bounds the reciprocal or the remainder would leave the normal floats.
            const bool ordinary = scale > 0x1p-90f && scale < 0x1p100f;
            finite = !(ordinary ? quantize_row<false>(row, a.k, scale, zero_point, q)
                                : quantize_row<true>(row, a.k, scale, zero_point, q));
        }
        if (!finite) {
            std::memset(q, 0, static_cast<std::size_t>(a.k + repeats));
            zero_point = 0;
            scale = has_nan(row, a.k) ? __builtin_nanf("") : __builtin_inff();
        }
        for (index_t i = 0; i < repeats; ++i) q[a.k + i] = q[a.columns.repeated[i]];
        a.scale[r] = scale;
        a.zero_point[r] = zero_point;
    }
}

template <typename T>
void quantize(const QuantizeArgs& a, index_t first, index_t count) {
    a.columns.factor != nullptr ? quantize_all<T, true>(a, first, count)
                                : quantize_all<T, false>(a, first, count);
}

constexpr QuantizeKernels quantize_kernels = {{quantize<float>, quantize<bf16_t>, quantize<f16_t>}};

}  // namespace
}  // namespace fastbert
