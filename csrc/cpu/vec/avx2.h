// The vector interface (documented in scalar.h) on AVX2, FMA and F16C: eight float32 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace fastbert {
namespace {

struct F32 {
    static constexpr int lanes = 8;
    __m256 v;
};

struct I32 {
    __m256i v;
};

struct Mask {
    __m256 v;
};

inline F32 set1(float x) { return {_mm256_set1_ps(x)}; }
inline F32 zero() { return {_mm256_setzero_ps()}; }
inline I32 set1_i32(std::int32_t x) { return {_mm256_set1_epi32(x)}; }

// All ones in the first n lanes.
inline __m256i first_lanes(int n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), index);
}

inline F32 widen(__m128i half_words, const bf16_t*) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_words), 16))};
}
inline F32 widen(__m128i half_words, const f16_t*) { return {_mm256_cvtph_ps(half_words)}; }

inline __m128i narrow(F32 a, const bf16_t*) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, bias), quiet, is_nan);
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    const __m256i packed = _mm256_packus_epi32(high, high);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x8));
}
inline __m128i narrow(F32 a, const f16_t*) {
    return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F32 load_n(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
inline void store_n(float* p, F32 a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }

// bf16_t and f16_t. Partial forms go through a buffer: AVX2 has no masked 16-bit access.
template <typename T>
inline F32 load(const T* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), p);
}
template <typename T>
inline F32 load_n(const T* p, int n) {
    T buffer[8] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return load(static_cast<const T*>(buffer));
}
template <typename T>
inline void store(T* p, F32 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, p));
}
template <typename T>
inline void store_n(T* p, F32 a, int n) {
    T buffer[8];
    store(static_cast<T*>(buffer), a);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

inline F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 fnma(F32 a, F32 b, F32 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32 neg(F32 a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
inline F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F32 copysign(F32 magnitude, F32 sign) {
    return {_mm256_or_ps(abs(magnitude).v, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign.v))};
}
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }

inline Mask less(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline F32 select(Mask m, F32 yes, F32 no) { return {_mm256_blendv_ps(no.v, yes.v, m.v)}; }

inline F32 keep_n(F32 a, int n) {
    return {_mm256_and_ps(a.v, _mm256_castsi256_ps(first_lanes(n)))};
}

// Halves are folded onto each other: lanes (0..3)+(4..7), then (0,1)+(2,3), then 0+1.
inline float reduce_add(F32 a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_max(F32 a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_min(F32 a) {
    __m128 x = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_min_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_min_ss(x, _mm_movehdup_ps(x)));
}

inline I32 to_i32(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
inline F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline F32 round_even(F32 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

inline I32 min(I32 a, I32 b) { return {_mm256_min_epi32(a.v, b.v)}; }
inline I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32 sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I32 mul(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline I32 load(const std::int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline I32 load_n(const std::int32_t* p, int n) {
    return {_mm256_maskload_epi32(p, first_lanes(n))};
}
inline void store(std::int32_t* p, I32 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
inline void store_n(std::int32_t* p, I32 a, int n) {
    _mm256_maskstore_epi32(p, first_lanes(n), a.v);
}

inline std::uint64_t narrow_u8(I32 a) {
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
}
inline void store_u8(std::uint8_t* p, I32 a) {
    const std::uint64_t bytes = narrow_u8(a);
    std::memcpy(p, &bytes, 8);
}
inline void store_u8_n(std::uint8_t* p, I32 a, int n) {
    const std::uint64_t bytes = narrow_u8(a);
    for (int i = 0; i < n; ++i) p[i] = static_cast<std::uint8_t>(bytes >> (8 * i));
}
inline void store_u8(std::uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    const __m256i bytes =
        _mm256_packus_epi16(_mm256_packs_epi32(a.v, b.v), _mm256_packs_epi32(c.v, d.v));
    // Packing works in halves: each of them holds four bytes of a, of b, of c and of d.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
}

inline F32 lookup16(const float* table, F32 a) {
    const __m256i index = _mm256_castps_si256(a.v);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), index);
    // Bit 3 chooses the half, moved to where a blend looks.
    return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)))};
}

inline F32 scale2(F32 a, I32 n) {
    const __m256i half = _mm256_srai_epi32(n.v, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n.v, half), bias), 23);
    return {
        _mm256_mul_ps(_mm256_mul_ps(a.v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))};
}

}  // namespace
}  // namespace fastbert

#include "cpu/vec/math.h"
