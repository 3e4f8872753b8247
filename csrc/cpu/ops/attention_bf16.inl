// bfloat16 inner products for attention: one step is a pair of elements, multiplied and summed in
// float32 by vdpbf16ps. The softmax stays in float32; probabilities are rounded to bfloat16 last.
// Included by attention.inl, where the instruction set has it.
#pragma once

#include <immintrin.h>

#include "common/types.h"

namespace fastbert {
namespace {
namespace attention_detail {

struct DotBf16 : RegisterLayout {
    using Operand = __m512bh;
    using Probability = bf16_t;
    static constexpr index_t elements_per_step = 2;
    static inline Operand operand(const float* p) {
        return reinterpret_cast<__m512bh>(_mm512_loadu_ps(p));
    }
    static inline Operand broadcast(const float* p) {
        return reinterpret_cast<__m512bh>(_mm512_set1_ps(*p));
    }
    static inline F32 dot(Operand a, Operand b, F32 sum) {
        return F32{_mm512_dpbf16_ps(sum.v, a, b)};
    }

    // 2^t within 7.5e-5 of its value, where a probability keeps 2e-3: a polynomial of our own fit
    // in the fraction of t, scaled by its floor. -inf gives 0, NaN stays NaN.
    static constexpr float unit = 0x1.715476p0f;  // log2(e): e^x = 2^(unit x)
    static constexpr bool fused = true;
    static inline F32 exponential(F32 t) {
        constexpr int floor_quietly = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
        const F32 fraction{_mm512_reduce_ps(t.v, floor_quietly)};
        F32 p = set1(0x1.3f96a4p-4f);
        p = fma(p, fraction, set1(0x1.cefc4cp-3f));
        p = fma(p, fraction, set1(0x1.64444cp-1f));
        p = fma(p, fraction, set1(0x1.fff632p-1f));
        return F32{_mm512_scalef_ps(p.v, t.v)};
    }
    static inline __m512i narrow2(F32 low, F32 high) {
        return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v));
    }
    static inline __m256i narrow1(F32 x) {
        return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
    }
    static inline void store_probabilities(bf16_t* p, F32 p0, F32 p1) {
        _mm512_storeu_si512(p, narrow2(p0, p1));
    }
    static inline void store_probabilities(bf16_t* p, F32 p0) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow1(p0));
    }
    // The first `count` elements of one or two vectors. Subnormal results become zero, as subnormal
    // factors are in the products.
    static inline void store_out(bf16_t* out, F32 x, index_t count) {
        _mm256_mask_storeu_epi16(out, static_cast<__mmask16>(first_words(count)), narrow1(x));
    }
    static inline void store_out(bf16_t* out, F32 x0, F32 x1, index_t count) {
        _mm512_mask_storeu_epi16(out, first_words(count), narrow2(x0, x1));
    }

    static inline void copy_row(const bf16_t* src, index_t n, float* dst) {
        index_t i = 0;
        for (; i + 32 <= n; i += 32) _mm512_storeu_si512(dst + i / 2, _mm512_loadu_si512(src + i));
        if (i < n) {
            // An odd head_dim leaves half a step, which must be zero.
            const __mmask32 steps = first_words((n - i + 1) / 2 * 2);
            const __m512i rest = _mm512_maskz_loadu_epi16(first_words(n - i), src + i);
            _mm512_mask_storeu_epi16(dst + i / 2, steps, rest);
        }
    }
    // Sixteen steps of a row of which `left` elements remain, zeros behind them.
    static inline F32 steps16(const bf16_t* src, index_t left) {
        const __mmask32 mask = first_words(left);
        return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, src))};
    }
    // Two rows of V, element by element side by side; a missing second row is zero.
    static inline void value_step(const bf16_t* row, const bf16_t* next, index_t n, index_t vectors,
                                  float* dst) {
        const __m512i none = _mm512_setzero_si512();
        // Words 0 .. 15 of both rows, in turn; then words 16 .. 31.
        const __m512i first = _mm512_add_epi32(_mm512_set1_epi32(32 << 16), lane_pairs());
        const __m512i second = _mm512_add_epi32(_mm512_set1_epi32((16 << 16) + 16), first);
        for (index_t i = 0; i < vectors; i += 2) {
            const index_t left = n - i * 16;
            const __mmask32 mask = first_words(left);
            const __m512i a = _mm512_maskz_loadu_epi16(mask, row + i * 16);
            const __m512i b =
                next == nullptr ? none : _mm512_maskz_loadu_epi16(mask, next + i * 16);
            _mm512_storeu_si512(dst + i * 16, _mm512_permutex2var_epi16(a, first, b));
            if (i + 1 < vectors) {
                _mm512_storeu_si512(dst + i * 16 + 16, _mm512_permutex2var_epi16(a, second, b));
            }
        }
    }

  protected:
    static inline __mmask32 first_words(index_t n) { return n >= 32 ? ~0u : (1u << n) - 1u; }
    // Lane n holds the pair of 16-bit numbers (n, n).
    static inline __m512i lane_pairs() {
        const __m512i n = _mm512_cvtps_epi32(_mm512_load_ps(kLaneNumbers));
        return _mm512_or_si512(n, _mm512_slli_epi32(n, 16));
    }
};

}  // namespace attention_detail
}  // namespace
}  // namespace fastbert
