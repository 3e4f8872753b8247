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

// 2^n as a float, for -149 <= n <= 127.
inline float power_of_two(int n) {
    const std::uint32_t bits =
        n < -126 ? std::uint32_t{1} << (n + 149) : static_cast<std::uint32_t>(n + 127) << 23;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// The e of quantize_rows16 for a finite magnitude.
inline int exponent_for(float magnitude) {
    // Lifted, so that subnormal ones have an exponent to be read.
    const bool small = magnitude < 0x1p-64f;
    const float lifted = small ? magnitude * 0x1p64f : magnitude;
    std::uint32_t bits;
    std::memcpy(&bits, &lifted, 4);
    // lifted = fraction * 2^e with 1/2 <= fraction < 1.
    int e = static_cast<int>(bits >> 23) - 126 - (small ? 64 : 0);
    const std::uint32_t largest = 32639u << 9;  // 32639 / 32768 with 24 bits
    if (((bits & 0x7fffff) | 0x800000) > largest) ++e;
    return e < -134 ? -134 : e;
}

// Writes both halves; true when some value was NaN.
template <class Source>
inline bool halve_row(const Source& row, index_t k, int e, std::uint8_t* high, std::uint8_t* low) {
    const I32 exponent = set1_i32(15 - e);
    I32 lowest = set1_i32(0);
    for (index_t i = 0; i < k; i += F32::lanes) {
        const Part part{static_cast<int>(k - i < F32::lanes ? k - i : F32::lanes)};
        // Every step after the first rounding is exact: integers below 2^16 and multiples of 2^-9.
        const F32 u = add(round_even(scale2(row.at(i, part), exponent)), set1(32896.0f));
        const F32 h = round_even(fma(u, set1(0x1p-8f), set1(-127.5f * 0x1p-8f)));
        const I32 l = to_i32(fnma(h, set1(256.0f), u));
        lowest = min(lowest, l);
        store_u8_n(high + i, to_i32(h), part.n);
        store_u8_n(low + i, l, part.n);
    }
    return reduce_min(to_f32(lowest)) < -1e9f;
}

template <typename T, bool scaled>
inline void halve_all(const QuantizeArgs& a, index_t first, index_t count) {
    const index_t repeats = a.columns.repeats;
    for (index_t r = first; r < first + count; ++r) {
        const Row<T, scaled> row{static_cast<const T*>(a.x) + r * a.x_stride, a.columns.factor};
        std::uint8_t* const halves[2] = {a.q + 2 * r * a.q_stride, a.q + (2 * r + 1) * a.q_stride};
        const RowRange range = range_of(row, a.k);
        const float magnitude = -range.low > range.high ? -range.low : range.high;
        const int e = exponent_for(magnitude);
        a.scale[r] = power_of_two(e - 7);
        if (!(magnitude < __builtin_inff()) || halve_row(row, a.k, e, halves[0], halves[1])) {
            for (std::uint8_t* half : halves) {
                std::memset(half, kHalfZero, static_cast<std::size_t>(a.k));
            }
            a.scale[r] = __builtin_nanf("");
        }
        for (std::uint8_t* half : halves) {
            for (index_t i = 0; i < repeats; ++i) half[a.k + i] = half[a.columns.repeated[i]];
        }
    }
}

template <typename T>
void halve(const QuantizeArgs& a, index_t first, index_t count) {
    a.columns.factor != nullptr ? halve_all<T, true>(a, first, count)
                                : halve_all<T, false>(a, first, count);
}

// Four candidates at a time, so that a row's values are loaded once for them.
inline void clip_errors(const ClipArgs& a, index_t first, index_t count) {
    constexpr index_t together = 4;
    for (index_t r = first; r < first + count; ++r) {
        const float* const x = a.x + r * a.x_stride;
        for (index_t c = 0; c < a.candidates; c += together) {
            const index_t n = a.candidates - c < together ? a.candidates - c : together;
            F32 scale[together], sum[together];
            for (index_t j = 0; j < together; ++j) {
                scale[j] = set1(a.scale[r * a.candidates + c + (j < n ? j : 0)]);
                sum[j] = zero();
            }
            sweep(a.k, [&](index_t i, auto extent, int) {
                const F32 v = load(x + i, extent), most = load(a.largest + i, extent);
                for (index_t j = 0; j < together; ++j) {
                    const F32 level = min(max(round_even(div(v, scale[j])), neg(most)), most);
                    const F32 off = sub(mul(level, scale[j]), v);
                    sum[j] = fma(off, off, sum[j]);
                }
            });
            for (index_t j = 0; j < n; ++j) {
                a.error[r * a.candidates + c + j] = reduce_add(sum[j]);
            }
        }
    }
}

constexpr QuantizeKernels quantize_kernels = {
    {quantize<float>, quantize<bf16_t>, quantize<f16_t>},
    {halve<float>, halve<bf16_t>, halve<f16_t>},
    clip_errors,
};

}  // namespace
}  // namespace fastbert
