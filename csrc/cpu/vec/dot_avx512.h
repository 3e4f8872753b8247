// Dot steps (dot.h) on AVX-512: 14 x 32 tiles in 28 of 32 registers; with VNNI and BF16 where the
// file is compiled for them, widened to 16 or 32 bits where not.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace fastbert {
namespace {

// Float32 sums are cut into chunks: the rounding error of a chain of K additions grows like sqrt(K)
// relative to the result, and K reaches 4608. Chunks of 128 cost half a point of the limit and
// bring what chunks of 256 did not: never twice the error of PyTorch's own products.
constexpr index_t kFloatChunk = 128;
constexpr index_t kNoChunk = index_t{1} << 40;

inline std::int32_t word_at(const std::uint8_t* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return word;
}

struct FloatSums {
    using Acc = __m512;
    static constexpr int kLanes = 16;
    static constexpr int kLaneBytes = 4;
    static constexpr bool kStagedX = false;
    static constexpr int kWordBytes = 4;
    static constexpr bool kWide = true;
    static Acc zero() { return _mm512_setzero_ps(); }
    static Acc add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
    static Acc load(const std::uint8_t* p) { return _mm512_loadu_ps(p); }
    static void store(std::uint8_t* p, Acc a) { _mm512_storeu_ps(p, a); }
};

struct IntSums {
    using Acc = __m512i;
    static constexpr int kLanes = 16;
    static constexpr bool kWide = true;
    static constexpr int kWordBytes = 4;
    static constexpr index_t kChunk = kNoChunk;
    static Acc zero() { return _mm512_setzero_si512(); }
    static Acc add(Acc a, Acc b) { return _mm512_add_epi32(a, b); }
    static Acc load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    static void store(std::uint8_t* p, Acc a) { _mm512_storeu_si512(p, a); }
};

struct DotF32 : FloatSums {
    using Left = __m512;
    using Right = __m512;
    static constexpr int kRows = 14;
    static constexpr int kGroup = 1;
    static constexpr index_t kChunk = kFloatChunk;
    static Left left(const std::uint8_t* p) {
        float x;
        std::memcpy(&x, p, 4);
        return _mm512_set1_ps(x);
    }
    static Right right(const std::uint8_t* p) { return _mm512_loadu_ps(p); }
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        a = _mm512_fmadd_ps(x, w, a);
        b = _mm512_fmadd_ps(x, v, b);
    }
};

#if defined(__AVX512BF16__)
struct DotBf16 : FloatSums {
    using Left = __m512i;
    using Right = __m512i;
    static constexpr int kRows = 14;
    static constexpr int kGroup = 2;
    static constexpr index_t kChunk = kNoChunk;  // its error is far below a bfloat16's half ulp
    static Left left(const std::uint8_t* p) { return _mm512_set1_epi32(word_at(p)); }
    static Right right(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        a = _mm512_dpbf16_ps(a, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
        b = _mm512_dpbf16_ps(b, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(v));
    }
};
#else
struct DotBf16 : FloatSums {
    struct Pair {
        __m512 even, odd;
    };
    using Left = Pair;
    using Right = Pair;
    static constexpr int kRows = 12;
    static constexpr int kGroup = 2;
    // Rows are widened once: of six instructions a row and word, that leaves the four products.
    static constexpr bool kStagedX = true;
    static constexpr int kWordBytes = 8;
    static constexpr index_t kChunk = kNoChunk;
    static Left left(const std::uint8_t* p) {
        float x[2];
        std::memcpy(x, p, sizeof(x));
        return {_mm512_set1_ps(x[0]), _mm512_set1_ps(x[1])};
    }
    static Right right(const std::uint8_t* p) {
        const __m512i words = _mm512_loadu_si512(p);
        const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(words, high))};
    }
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        a = _mm512_fmadd_ps(x.odd, w.odd, _mm512_fmadd_ps(x.even, w.even, a));
        b = _mm512_fmadd_ps(x.odd, v.odd, _mm512_fmadd_ps(x.even, v.even, b));
    }
};
#endif

#if defined(__AVX512VNNI__)
struct DotU8S8 : IntSums {
    using Left = __m512i;
    using Right = __m512i;
    static constexpr int kRows = 14;
    static constexpr int kGroup = 4;
    static constexpr int kLaneBytes = 4;
    static constexpr bool kStagedX = false;
    static Left left(const std::uint8_t* p) { return _mm512_set1_epi32(word_at(p)); }
    static Right right(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    // vpdpbusd, unlike vpdpbusds, adds the four products without saturation.
    // Written as an instruction because GCC 12 copies every sum before and after the intrinsic:
    // 40 % of the limit instead of 94 % on Zen 4.
    static Acc dot(Acc c, Left x, Right w) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(x), "v"(w));
        return c;
    }
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        a = dot(a, x, w);
        b = dot(b, x, v);
    }
};
#else
struct DotU8S8 : IntSums {
    using Left = __m512i;
    using Right = __m512i;
    static constexpr int kRows = 14;
    static constexpr int kGroup = 2;
    static constexpr int kLaneBytes = 2;
    static constexpr bool kStagedX = true;
    static Left left(const std::uint8_t* p) { return _mm512_set1_epi32(word_at(p)); }
    static Right right(const std::uint8_t* p) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    // As in dot_avx2.h. On Zen 4 this order alone is worth 16 %: 206 G operations/s, against 176
    // with each addition right after its product. Through the intrinsics, GCC 12 kept 14 rows' sums
    // on the stack: 122.
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        Acc c = a, d = b, pairs;
        __asm__(
            "vpmaddwd %4, %2, %3\n\t"
            "vpmaddwd %5, %2, %2\n\t"
            "vpaddd %3, %0, %0\n\t"
            "vpaddd %2, %1, %1"
            : "+v"(c), "+v"(d), "+v"(x), "=&v"(pairs)
            : "v"(w), "v"(v));
        a = c;
        b = d;
    }
};
#endif

}  // namespace
}  // namespace fastbert
