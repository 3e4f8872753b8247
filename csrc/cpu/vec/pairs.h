// Two vectors of neighbouring elements at once, in the order that is cheapest to widen: for bf16_t
// the even elements and the odd ones, for the others the first and the second half. Where both
// sides of a product are read so, the order does not matter; store_two() undoes it. Included after
// a vec header.
#pragma once

#include "common/types.h"

namespace fastbert {
namespace {

template <typename T>
inline void load_two(const T* p, F32& low, F32& high) {
    low = load(p);
    high = load(p + F32::lanes);
}

// The last argument names the type whose order low and high are in.
template <typename T>
inline void store_two(float* p, F32 low, F32 high, const T*) {
    store(p, low);
    store(p + F32::lanes, high);
}

// One load and two operations, where widening two vectors takes two loads, shuffles and shifts.
#if defined(__AVX512F__)
inline void load_two(const bf16_t* p, F32& low, F32& high) {
    const __m512i both = _mm512_loadu_si512(p);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    low = {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))};
    high = {_mm512_castsi512_ps(_mm512_and_si512(both, upper))};
}

inline void store_two(float* p, F32 low, F32 high, const bf16_t*) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    _mm512_storeu_ps(p, _mm512_permutex2var_ps(low.v, first, high.v));
    _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(low.v, second, high.v));
}
#elif defined(__AVX2__)
inline void load_two(const bf16_t* p, F32& low, F32& high) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    low = {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16))};
    high = {_mm256_castsi256_ps(_mm256_and_si256(both, upper))};
}

inline void store_two(float* p, F32 low, F32 high, const bf16_t*) {
    const __m256 a = _mm256_unpacklo_ps(low.v, high.v), b = _mm256_unpackhi_ps(low.v, high.v);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(a, b, 0x20));
    _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(a, b, 0x31));
}
#endif

}  // namespace
}  // namespace fastbert
