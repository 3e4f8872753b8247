// The vector interface and its portable form: one float32 lane, baseline code.
//
// Every instruction set defines the same names (avx2.h, avx512.h) and computes the same bits for
// elementwise work: fma() rounds once everywhere, and nothing is contracted. Reductions add in a
// fixed order that depends on the lane count, so they may differ between sets, never between runs.
//
//   F32                   `lanes` float32 values
//   I32                   `lanes` int32 values
//   Mask                  one truth value a lane
//   load(p)               lanes values of float, bf16_t or f16_t, widened; no alignment needed
//   load_n(p, n)          the first n (0..lanes) values, zeros after; never touches p[n]
//   store, store_n        the reverse; rounds to nearest even, NaN stays NaN
//   keep_n(a, n)          a with its lanes from n on set to zero
//   max(a, b), min(a, b)  b when either is NaN: keep the value that must propagate in second place
//   fma(a, b, c)          a*b + c;  fnma(a, b, c) = c - a*b
//   scale2(a, n)          a * 2^n, one rounding, for -252 <= n <= 254
#pragma once

#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace fastbert {
namespace {

struct F32 {
    static constexpr int lanes = 1;
    float v;
};

struct I32 {
    std::int32_t v;
};

struct Mask {
    bool v;
};

inline F32 set1(float x) { return {x}; }
inline F32 zero() { return {0.0f}; }
inline I32 set1_i32(std::int32_t x) { return {x}; }

inline float float_of_bits(std::uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline std::uint32_t bits_of_float(float f) {
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}

inline float widen(float x) { return x; }

inline float widen(bf16_t x) { return float_of_bits(std::uint32_t{x.bits} << 16); }

inline float widen(f16_t x) {
    const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
    const std::uint32_t magnitude = x.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity, or a NaN (made quiet, as the hardware does)
        const std::uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
        return float_of_bits(sign | 0x7f800000u | quiet | ((magnitude & 0x3ffu) << 13));
    }
    // Placing exponent and mantissa in a float gives value * 2^-112; the product is exact and also
    // normalises subnormal halves.
    const float scaled = float_of_bits(magnitude << 13) * 0x1p112f;
    return float_of_bits(sign | bits_of_float(scaled));
}

inline void narrow(float x, float* out) { *out = x; }

inline void narrow(float x, bf16_t* out) {
    const std::uint32_t bits = bits_of_float(x);
    if (x != x) {
        out->bits = static_cast<std::uint16_t>((bits >> 16) | 0x40u);
        return;
    }
    out->bits = static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void narrow(float x, f16_t* out) {
    const std::uint32_t bits = bits_of_float(x);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    std::uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: the sum rounds at the subnormals' unit
        half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    out->bits = static_cast<std::uint16_t>(sign | half);
}

template <typename T>
inline F32 load(const T* p) {
    return {widen(*p)};
}

template <typename T>
inline F32 load_n(const T* p, int n) {
    return n > 0 ? load(p) : zero();
}

template <typename T>
inline void store(T* p, F32 a) {
    narrow(a.v, p);
}

template <typename T>
inline void store_n(T* p, F32 a, int n) {
    if (n > 0) store(p, a);
}

inline F32 add(F32 a, F32 b) { return {a.v + b.v}; }
inline F32 sub(F32 a, F32 b) { return {a.v - b.v}; }
inline F32 mul(F32 a, F32 b) { return {a.v * b.v}; }
inline F32 div(F32 a, F32 b) { return {a.v / b.v}; }
inline F32 sqrt(F32 a) { return {__builtin_sqrtf(a.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {__builtin_fmaf(a.v, b.v, c.v)}; }
inline F32 fnma(F32 a, F32 b, F32 c) { return {__builtin_fmaf(-a.v, b.v, c.v)}; }
inline F32 neg(F32 a) { return {-a.v}; }
inline F32 abs(F32 a) { return {__builtin_fabsf(a.v)}; }
inline F32 copysign(F32 magnitude, F32 sign) { return {__builtin_copysignf(magnitude.v, sign.v)}; }
inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }

inline Mask less(F32 a, F32 b) { return {a.v < b.v}; }
inline F32 select(Mask m, F32 yes, F32 no) { return m.v ? yes : no; }

inline F32 keep_n(F32 a, int n) { return n > 0 ? a : zero(); }

inline float reduce_add(F32 a) { return a.v; }
inline float reduce_max(F32 a) { return a.v; }
inline float reduce_min(F32 a) { return a.v; }

// Rounds to nearest even; the value must fit an int32.
inline I32 to_i32(F32 a) {
    return {a.v == a.v ? static_cast<std::int32_t>(__builtin_rintf(a.v)) : INT32_MIN};
}
inline F32 to_f32(I32 a) { return {static_cast<float>(a.v)}; }
inline F32 round_even(F32 a) { return {__builtin_rintf(a.v)}; }

inline I32 min(I32 a, I32 b) { return a.v < b.v ? a : b; }
inline I32 add(I32 a, I32 b) { return {a.v + b.v}; }
inline I32 sub(I32 a, I32 b) { return {a.v - b.v}; }
inline I32 mul(I32 a, I32 b) { return {a.v * b.v}; }
inline I32 load(const std::int32_t* p) { return {*p}; }
inline I32 load_n(const std::int32_t* p, int n) { return {n > 0 ? *p : 0}; }
inline void store(std::int32_t* p, I32 a) { *p = a.v; }
inline void store_n(std::int32_t* p, I32 a, int n) {
    if (n > 0) *p = a.v;
}

// Saturates to 0..255.
inline void store_u8(std::uint8_t* p, I32 a) {
    *p = static_cast<std::uint8_t>(a.v < 0 ? 0 : a.v > 255 ? 255 : a.v);
}
inline void store_u8_n(std::uint8_t* p, I32 a, int n) {
    if (n > 0) store_u8(p, a);
}
// Four vectors one after the other.
inline void store_u8(std::uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    store_u8(p, a);
    store_u8(p + 1, b);
    store_u8(p + 2, c);
    store_u8(p + 3, d);
}

// table[lowest four bits of a lane]; table holds 16 floats and is 64-byte aligned.
inline F32 lookup16(const float* table, F32 a) { return {table[bits_of_float(a.v) & 15]}; }

// Two exact-or-rounded-once products: 2^n itself may lie outside the floats.
inline F32 scale2(F32 a, I32 n) {
    const std::int32_t half = n.v >> 1;
    const float first = float_of_bits(static_cast<std::uint32_t>(half + 127) << 23);
    const float second = float_of_bits(static_cast<std::uint32_t>(n.v - half + 127) << 23);
    return {a.v * first * second};
}

}  // namespace
}  // namespace fastbert

#include "cpu/vec/math.h"
