// Random words by counter: Philox4x32-7 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011). Included by ops after a vec header.
#pragma once

#include <cstdint>

namespace fastbert {
namespace {

// 64-bit lanes of which the lower halves count: a product looks at nothing else, so that what
// shifts and xors leave above them needs no clearing. Two of them make one vector of words.
#if defined(__AVX512F__)
struct Halves {
    __m512i v;
};
inline Halves set_halves(std::uint32_t x) { return {_mm512_set1_epi64(x)}; }
// x, x + 2, x + 4, ...
inline Halves count_halves(std::uint32_t x) {
    return {_mm512_add_epi64(_mm512_set1_epi64(x), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14))};
}
inline Halves product(Halves a, Halves b) { return {_mm512_mul_epu32(a.v, b.v)}; }
inline Halves upper(Halves a) { return {_mm512_srli_epi64(a.v, 32)}; }
inline Halves xor3(Halves a, Halves b, Halves c) {
    return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)};
}
inline I32 interleave(Halves even, Halves odd) {
    return {_mm512_mask_blend_epi32(0xaaaa, even.v, _mm512_slli_epi64(odd.v, 32))};
}
inline I32 shift_right_8(I32 a) { return {_mm512_srli_epi32(a.v, 8)}; }
#elif defined(__AVX2__)
struct Halves {
    __m256i v;
};
inline Halves set_halves(std::uint32_t x) { return {_mm256_set1_epi64x(x)}; }
inline Halves count_halves(std::uint32_t x) {
    return {_mm256_add_epi64(_mm256_set1_epi64x(x), _mm256_setr_epi64x(0, 2, 4, 6))};
}
inline Halves product(Halves a, Halves b) { return {_mm256_mul_epu32(a.v, b.v)}; }
inline Halves upper(Halves a) { return {_mm256_srli_epi64(a.v, 32)}; }
inline Halves xor3(Halves a, Halves b, Halves c) {
    return {_mm256_xor_si256(_mm256_xor_si256(a.v, b.v), c.v)};
}
inline I32 interleave(Halves even, Halves odd) {
    return {_mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xaa)};
}
inline I32 shift_right_8(I32 a) { return {_mm256_srli_epi32(a.v, 8)}; }
#else
struct Halves {
    std::uint64_t v;
};
inline Halves set_halves(std::uint32_t x) { return {x}; }
inline Halves count_halves(std::uint32_t x) { return {x}; }
inline Halves product(Halves a, Halves b) { return {(a.v & 0xffffffff) * (b.v & 0xffffffff)}; }
inline Halves upper(Halves a) { return {a.v >> 32}; }
inline Halves xor3(Halves a, Halves b, Halves c) { return {a.v ^ b.v ^ c.v}; }
inline I32 interleave(Halves even, Halves) { return {static_cast<std::int32_t>(even.v)}; }
inline I32 shift_right_8(I32 a) {
    return {static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v) >> 8)};
}
#endif

// The words of F32::lanes counters, counter + lane, under a key; words[w] holds word w of each. A
// counter is a multiple of F32::lanes.
inline void philox(std::uint64_t counter, std::uint64_t key, I32 (&words)[4]) {
    const Halves m = set_halves(0xD2511F53u), n = set_halves(0xCD9E8D57u);
    const auto low = static_cast<std::uint32_t>(counter);
    // Multiples of the lanes: the sums below never carry into the upper half of the counter.
    const Halves high = set_halves(static_cast<std::uint32_t>(counter >> 32));
    Halves a[2] = {count_halves(low), count_halves(low + 1)};
    Halves b[2] = {high, high}, c[2] = {set_halves(0), set_halves(0)}, d[2] = {c[0], c[0]};
    auto k = static_cast<std::uint32_t>(key), l = static_cast<std::uint32_t>(key >> 32);
#pragma GCC unroll 7
    for (int round = 0; round < 7; ++round) {
        const Halves first_key = set_halves(k), second_key = set_halves(l);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const Halves p = product(a[i], m), q = product(c[i], n);
            a[i] = xor3(upper(q), b[i], first_key);
            b[i] = q;
            c[i] = xor3(upper(p), d[i], second_key);
            d[i] = p;
        }
        k += 0x9E3779B9u;
        l += 0xBB67AE85u;
    }
    words[0] = interleave(a[0], a[1]);
    words[1] = interleave(b[0], b[1]);
    words[2] = interleave(c[0], c[1]);
    words[3] = interleave(d[0], d[1]);
}

}  // namespace
}  // namespace fastbert
