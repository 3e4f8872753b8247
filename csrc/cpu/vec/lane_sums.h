// The sums of the lanes of several vectors, as one vector. Included after a vec header.
#pragma once

#include "common/types.h"

namespace fastbert {
namespace {

// Lane j is the sum of the lanes of rows[j], in an order that does not depend on j.
// Takes the sums of F32::lanes rows, `side` rows at a time, so that few of them need registers at
// once; lane j of total() is the sum of row j.
#if defined(__AVX512F__)
// Neighbours are interleaved and added, so that every round halves the vectors: 45 instructions for
// 16 sums, where one alone takes 9.
class LaneSums {
  public:
    static constexpr int side = 4;

    void take(int first, const F32 (&rows)[side]) {
        const auto pair = [](F32 a, F32 b) {
            return _mm512_castps_pd(
                _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v)));
        };
        const __m512d a = pair(rows[0], rows[1]), b = pair(rows[2], rows[3]);
        // In each of its quarters, a quarter of the sums of the four rows.
        fours_[first / side] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }

    F32 total() const {
        const auto join = [](__m512 a, __m512 b) {
            return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88),
                                 _mm512_shuffle_f32x4(a, b, 0xdd));
        };
        return {join(join(fours_[0], fours_[1]), join(fours_[2], fours_[3]))};
    }

  private:
    __m512 fours_[F32::lanes / side];
};
#else
class LaneSums {
  public:
    static constexpr int side = F32::lanes < 2 ? 1 : 2;

    void take(int first, const F32 (&rows)[side]) {
        for (int j = 0; j < side; ++j) sums_[first + j] = reduce_add(rows[j]);
    }

    F32 total() const { return load(static_cast<const float*>(sums_)); }

  private:
    float sums_[F32::lanes];
};
#endif

}  // namespace
}  // namespace fastbert
