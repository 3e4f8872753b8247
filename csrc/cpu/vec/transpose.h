// Sixteen rows of sixteen 32-bit elements in registers, transposed into memory.
#pragma once

#include "common/types.h"

#if defined(__AVX512F__)

#include <immintrin.h>

namespace fastbert {
namespace {

// dst[c * dst_stride + r] = element c of a[r], for the first `count` columns c.
//
// Four rounds of exchanges at distance 1, 2, 4 and 8: 64 shuffles for 256 elements.
static inline void transpose_16x16(const F32 (&rows)[16], int count, float* dst,
                                   index_t dst_stride) {
    __m512 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        b[2 * i] = _mm512_unpacklo_ps(rows[2 * i].v, rows[2 * i + 1].v);
        b[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i].v, rows[2 * i + 1].v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512d lo0 = _mm512_castps_pd(b[4 * i]), lo1 = _mm512_castps_pd(b[4 * i + 2]);
        const __m512d hi0 = _mm512_castps_pd(b[4 * i + 1]), hi1 = _mm512_castps_pd(b[4 * i + 3]);
        a[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo0, lo1));
        a[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo0, lo1));
        a[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(hi0, hi1));
        a[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(hi0, hi1));
    }
    // a[4 g + c] now holds, in its 128-bit lane l, column 4 l + c of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        const __m512 even01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88);
        const __m512 odd01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
        const __m512 even23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
        const __m512 odd23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
        b[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
        b[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
        b[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
        b[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
#pragma GCC unroll 16
    for (int c = 0; c < 16; ++c) {
        if (c < count) _mm512_storeu_ps(dst + c * dst_stride, b[c]);
    }
}

}  // namespace
}  // namespace fastbert

#endif
