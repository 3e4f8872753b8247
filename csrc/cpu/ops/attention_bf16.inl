// bfloat16 inner products for attention: one step is a pair of elements, multiplied and summed in
// float32 by vdpbf16ps. The softmax stays in float32; probabilities are rounded to bfloat16 last.
// Included by attention.inl, where the instruction set has it.
#pragma once

#include <immintrin.h>

#include "common/types.h"

namespace fastbert {
namespace {
namespace attention_detail {

struct DotBf16 {
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

    // e^x for x <= 0 to 3e-6 of its value, where a probability keeps 4e-3: 2^t, t = x log2(e), is a
    // polynomial of our own fit in the fraction of t, scaled by its floor. NaN stays NaN; results
    // below 2^-126 are as good as zero.
    static inline F32 exponential(F32 x) {
        constexpr int floor_quietly = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
        const __m512 lowest = _mm512_set1_ps(-150.0f);
        const __m512 t = _mm512_max_ps(lowest, _mm512_mul_ps(x.v, _mm512_set1_ps(0x1.715476p0f)));
        const F32 fraction{_mm512_reduce_ps(t, floor_quietly)};
        F32 p = set1(0x1.bb7ca8p-7f);
        p = fma(p, fraction, set1(0x1.aa1406p-5f));
        p = fma(p, fraction, set1(0x1.ee7988p-3f));
        p = fma(p, fraction, set1(0x1.62d166p-1f));
        p = fma(p, fraction, set1(0x1.00002cp0f));
        return F32{_mm512_scalef_ps(p.v, t)};
    }
    static inline void store_probabilities(bf16_t* p, F32 p0, F32 p1) {
        _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p1.v, p0.v)));
    }
    static inline void store_probabilities(bf16_t* p, F32 p0) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(p0.v)));
    }

    static inline void copy_row(const bf16_t* src, index_t n, float* dst) {
        // An odd head_dim leaves half a step, which must be zero.
        if (n % 2 != 0) dst[n / 2] = 0.0f;
        __builtin_memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(bf16_t));
    }
    // Two rows of V, element by element side by side; a missing second row is zero.
    static inline void value_step(const bf16_t* row, const bf16_t* next, index_t n, index_t vectors,
                                  float* dst) {
        for (index_t i = 0; i < vectors; ++i) {
            const index_t left = n - i * 16;
            const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + i * 16));
            const __m512i high =
                next == nullptr
                    ? _mm512_setzero_si512()
                    : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, next + i * 16));
            _mm512_storeu_si512(dst + i * 16, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
};

}  // namespace attention_detail
}  // namespace
}  // namespace fastbert
