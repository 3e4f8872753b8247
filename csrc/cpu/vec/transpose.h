// dst[c * dst_stride + r] = src[r * src_stride + c] for 32-bit elements.
#pragma once

#include "common/types.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastbert {
namespace {

static inline void transpose_scalar(const float* src, index_t src_stride, index_t rows,
                                    index_t cols, float* dst, index_t dst_stride) {
    for (index_t r = 0; r < rows; ++r) {
        for (index_t c = 0; c < cols; ++c) dst[c * dst_stride + r] = src[r * src_stride + c];
    }
}

#if defined(__AVX512F__)

// Four rounds of exchanges at distance 1, 2, 4 and 8: 64 shuffles for 256 elements.
static inline void transpose_16x16(const float* src, index_t src_stride, float* dst,
                                   index_t dst_stride) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(src + i * src_stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
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
        _mm512_storeu_ps(dst + c * dst_stride, _mm512_shuffle_f32x4(even01, even23, 0x88));
        _mm512_storeu_ps(dst + (4 + c) * dst_stride, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
        _mm512_storeu_ps(dst + (8 + c) * dst_stride, _mm512_shuffle_f32x4(even01, even23, 0xdd));
        _mm512_storeu_ps(dst + (12 + c) * dst_stride, _mm512_shuffle_f32x4(odd01, odd23, 0xdd));
    }
}

#endif

static inline void transpose(const float* src, index_t src_stride, index_t rows, index_t cols,
                             float* dst, index_t dst_stride) {
#if defined(__AVX512F__)
    if (rows == 16) {
        index_t c = 0;
        for (; c + 16 <= cols; c += 16) {
            transpose_16x16(src + c, src_stride, dst + c * dst_stride, dst_stride);
        }
        transpose_scalar(src + c, src_stride, rows, cols - c, dst + c * dst_stride, dst_stride);
        return;
    }
#endif
    transpose_scalar(src, src_stride, rows, cols, dst, dst_stride);
}

}  // namespace
}  // namespace fastbert
