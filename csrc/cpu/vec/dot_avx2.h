// Dot steps (dot.h) on AVX2 and FMA: 6 x 16 tiles in 12 of 16 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace fastbert {
namespace {

constexpr index_t kFloatChunk = 128;  // as in dot_avx512.h
constexpr index_t kNoChunk = index_t{1} << 40;

inline std::int32_t word_at(const std::uint8_t* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return word;
}

inline __m256i load_words(const std::uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

struct FloatSums {
    using Acc = __m256;
    static constexpr int kLanes = 8;
    static constexpr int kLaneBytes = 4;
    static constexpr bool kStagedX = false;
    static constexpr int kWordBytes = 4;
    static Acc zero() { return _mm256_setzero_ps(); }
    static Acc add(Acc a, Acc b) { return _mm256_add_ps(a, b); }
    static Acc load(const std::uint8_t* p) { return _mm256_castsi256_ps(load_words(p)); }
    static void store(std::uint8_t* p, Acc a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_castps_si256(a));
    }
};

struct DotF32 : FloatSums {
    using Left = __m256;
    using Right = __m256;
    static constexpr int kRows = 6;
    static constexpr int kGroup = 1;
    static constexpr bool kWide = true;
    static constexpr index_t kChunk = kFloatChunk;
    static Left left(const std::uint8_t* p) {
        float x;
        std::memcpy(&x, p, 4);
        return _mm256_set1_ps(x);
    }
    static Right right(const std::uint8_t* p) { return load(p); }
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        a = _mm256_fmadd_ps(x, w, a);
        b = _mm256_fmadd_ps(x, v, b);
    }
};

struct DotBf16 : FloatSums {
    struct Pair {
        __m256 even, odd;
    };
    using Left = Pair;
    using Right = Pair;
    static constexpr int kRows = 4;
    static constexpr int kGroup = 2;
    static constexpr bool kStagedX = true;  // as in dot_avx512.h
    static constexpr int kWordBytes = 8;
    static constexpr bool kWide = false;
    static constexpr index_t kChunk = kNoChunk;
    static Left left(const std::uint8_t* p) {
        float x[2];
        std::memcpy(x, p, sizeof(x));
        return {_mm256_set1_ps(x[0]), _mm256_set1_ps(x[1])};
    }
    static Right right(const std::uint8_t* p) {
        const __m256i words = load_words(p);
        const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
                _mm256_castsi256_ps(_mm256_and_si256(words, high))};
    }
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        a = _mm256_fmadd_ps(x.odd, w.odd, _mm256_fmadd_ps(x.even, w.even, a));
        b = _mm256_fmadd_ps(x.odd, v.odd, _mm256_fmadd_ps(x.even, v.even, b));
    }
};

struct DotU8S8 {
    using Acc = __m256i;
    using Left = __m256i;
    using Right = __m256i;
    static constexpr int kRows = 6;
    static constexpr int kLanes = 8;
    static constexpr int kGroup = 2;
    static constexpr int kLaneBytes = 2;
    static constexpr bool kStagedX = true;
    static constexpr int kWordBytes = 4;
    static constexpr bool kWide = true;
    static constexpr index_t kChunk = kNoChunk;
    static Acc zero() { return _mm256_setzero_si256(); }
    static Acc add(Acc a, Acc b) { return _mm256_add_epi32(a, b); }
    static Acc load(const std::uint8_t* p) { return load_words(p); }
    static void store(std::uint8_t* p, Acc a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
    }
    static Left left(const std::uint8_t* p) { return _mm256_set1_epi32(word_at(p)); }
    static Right right(const std::uint8_t* p) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    // vpmaddwd on widened values is exact (a pair is at most 2 * 255 * 128), where vpmaddubsw would
    // saturate. Making that exact is slower: |x - 128| times w with the sign of x - 128 takes as
    // many instructions and a register more (158 G operations/s in 5 rows on Zen 4, against 177
    // here), and has no room for w = -128; seven bits of x and the eighth apart take five instead
    // of four. Written as instructions because GCC 12 copies the intrinsics' sums to the stack in
    // every step (100 G operations/s in 5 rows). The second product overwrites x, so that 6 rows
    // take all 16 registers. Of a and b there are copies because GCC leaves an array that is an
    // operand of an asm in memory.
    static void step(Acc& a, Acc& b, Left x, Right w, Right v) {
        Acc c = a, d = b, pairs;
        __asm__(
            "vpmaddwd %4, %2, %3\n\t"
            "vpmaddwd %5, %2, %2\n\t"
            "vpaddd %3, %0, %0\n\t"
            "vpaddd %2, %1, %1"
            : "+x"(c), "+x"(d), "+x"(x), "=&x"(pairs)
            : "x"(w), "x"(v));
        a = c;
        b = d;
    }
};

}  // namespace
}  // namespace fastbert
