// The vector interface (documented in scalar.h) on AVX-512 F, BW, DQ and VL: sixteen float32 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/types.h"

namespace fastbert {
namespace {

struct F32 {
    static constexpr int lanes = 16;
    __m512 v;
};

struct I32 {
    __m512i v;
};

struct Mask {
    __mmask16 v;
};

inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32 zero() { return {_mm512_setzero_ps()}; }
inline I32 set1_i32(std::int32_t x) { return {_mm512_set1_epi32(x)}; }

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F32 widen(__m256i half_words, const bf16_t*) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half_words), 16))};
}
inline F32 widen(__m256i half_words, const f16_t*) { return {_mm512_cvtph_ps(half_words)}; }

inline __m256i narrow_by_integers(F32 a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_or_epi32(_mm512_add_epi32(bits, bias), is_nan, bits,
                                                 _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
inline __m256i narrow(F32 a, const bf16_t*) {
#if defined(__AVX512BF16__)
    // vcvtneps2bf16 flushes subnormals, and every instruction set must store the same bits.
    constexpr int subnormal = 0x20;
    if (__builtin_expect(_mm512_fpclass_ps_mask(a.v, subnormal) == 0, 1)) {
        return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
    }
#endif
    return narrow_by_integers(a);
}
inline __m256i narrow(F32 a, const f16_t*) {
    return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
inline void store_n(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }

// bf16_t and f16_t.
template <typename T>
inline F32 load(const T* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p);
}
template <typename T>
inline F32 load_n(const T* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p), p);
}
template <typename T>
inline void store(T* p, F32 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a, p));
}
template <typename T>
inline void store_n(T* p, F32 a, int n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a, p));
}

inline F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 fnma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32 neg(F32 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline F32 abs(F32 a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
inline F32 copysign(F32 magnitude, F32 sign) {
    return {_mm512_or_ps(abs(magnitude).v, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign.v))};
}
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }

inline Mask less(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline F32 select(Mask m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }

inline F32 keep_n(F32 a, int n) { return {_mm512_maskz_mov_ps(first_lanes(n), a.v)}; }

// Halves are folded onto each other, as in avx2.h. Written out because the order
// _mm512_reduce_add_ps takes is the compiler's to choose.
inline __m256 upper_half(__m512 a) { return _mm512_extractf32x8_ps(a, 1); }
inline float reduce_add(F32 a) {
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_max(F32 a) {
    const __m256 y = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_min(F32 a) {
    const __m256 y = _mm256_min_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
    __m128 x = _mm_min_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_min_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_min_ss(x, _mm_movehdup_ps(x)));
}

inline I32 to_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F32 round_even(F32 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

inline I32 min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 sub(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 mul(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I32 load(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline I32 load_n(const std::int32_t* p, int n) {
    return {_mm512_maskz_loadu_epi32(first_lanes(n), p)};
}
inline void store(std::int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }
inline void store_n(std::int32_t* p, I32 a, int n) {
    _mm512_mask_storeu_epi32(p, first_lanes(n), a.v);
}

// vpmovusdb saturates unsigned values, so negative ones are lifted to zero first.
inline __m128i narrow_u8(I32 a) {
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(a.v, _mm512_setzero_si512()));
}
inline void store_u8(std::uint8_t* p, I32 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_u8(a));
}
inline void store_u8_n(std::uint8_t* p, I32 a, int n) {
    _mm_mask_storeu_epi8(p, first_lanes(n), narrow_u8(a));
}
inline void store_u8(std::uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    const __m512i bytes =
        _mm512_packus_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
    // Packing works in quarters: each of them holds four bytes of a, of b, of c and of d.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}

// table[lowest four bits of a lane]; table holds 16 floats and is 64-byte aligned.
inline F32 lookup16(const float* table, F32 a) {
    return {_mm512_permutexvar_ps(_mm512_castps_si512(a.v), _mm512_load_ps(table))};
}

inline F32 scale2(F32 a, I32 n) { return {_mm512_scalef_ps(a.v, _mm512_cvtepi32_ps(n.v))}; }

}  // namespace
}  // namespace fastbert

#include "cpu/vec/math.h"
