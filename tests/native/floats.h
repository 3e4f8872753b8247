// The storage types, one value at a time, for tests that are written once for all of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/types.h"

namespace test {

using fastbert::bf16_t;
using fastbert::DType;
using fastbert::f16_t;

template <class T>
DType dtype_of();
template <>
inline DType dtype_of<float>() {
    return DType::f32;
}
template <>
inline DType dtype_of<bf16_t>() {
    return DType::bf16;
}
template <>
inline DType dtype_of<f16_t>() {
    return DType::f16;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16_t x) {
    const std::uint32_t bits = std::uint32_t{x.bits} << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float to_float(f16_t x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    float value;
    if (exponent == 31) {
        value = mantissa == 0 ? INFINITY : NAN;
    } else {
        value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    }
    return x.bits >> 15 ? -value : value;
}

// Rounded to nearest even; magnitudes from 2^-14 to below the largest are enough for tests.
template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline bf16_t from_float<bf16_t>(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return {0x7fc0};
    return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16_t from_float<f16_t>(float x) {
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (x != x) return {0x7e00};
    const float size = std::fabs(x);
    if (size < 0x1p-14f) {
        return {static_cast<std::uint16_t>(sign | std::lrint(std::ldexp(size, 24)))};
    }
    std::uint32_t bits;
    std::memcpy(&bits, &size, 4);
    bits += 0xfff + (bits >> 13 & 1);
    return {static_cast<std::uint16_t>(sign | ((bits >> 13) - (112u << 10)))};
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace test
