// The sums of the lanes of several vectors, as one vector. Included after a vec header.
#pragma once

#include "common/types.h"

namespace fastbert {
namespace {

// Lane j is the sum of the lanes of rows[j], in an order that does not depend on j.
#if defined(__AVX512F__)
// Neighbours are interleaved and added, so that every round halves the vectors: 45 instructions for
// 16 sums, where one alone takes 9.
inline F32 lane_sums(const F32 (&rows)[F32::lanes]) {
    __m512 fours[4], halves[2];
    for (int i = 0; i < 4; ++i) {
        const auto pair = [&](int first) {
            const __m512 a = rows[first].v, b = rows[first + 1].v;
            return _mm512_castps_pd(
                _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        };
        const __m512d a = pair(4 * i), b = pair(4 * i + 2);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    // fours[i] holds, in each of its quarters, a quarter of the sums of rows 4 i to 4 i + 3.
    const auto join = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    for (int i = 0; i < 2; ++i) halves[i] = join(fours[2 * i], fours[2 * i + 1]);
    return {join(halves[0], halves[1])};
}
#else
inline F32 lane_sums(const F32 (&rows)[F32::lanes]) {
    float sums[F32::lanes];
    for (int i = 0; i < F32::lanes; ++i) sums[i] = reduce_add(rows[i]);
    return load(static_cast<const float*>(sums));
}
#endif

}  // namespace
}  // namespace fastbert
