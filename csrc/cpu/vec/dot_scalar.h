// Dot steps (dot.h) in portable C++: eight columns a step, which a compiler may vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace fastbert {
namespace {

constexpr index_t kFloatChunk = 128;  // as in dot_avx512.h
constexpr index_t kNoChunk = index_t{1} << 40;

template <typename T>
struct EightSums {
    struct Acc {
        T v[8];
    };
    static constexpr int kRows = 2;
    static constexpr int kLanes = 8;
    static constexpr bool kWide = false;
    static Acc zero() { return Acc{}; }
    static Acc add(Acc a, Acc b) {
        for (int i = 0; i < 8; ++i) a.v[i] += b.v[i];
        return a;
    }
    static Acc load(const std::uint8_t* p) {
        Acc a;
        std::memcpy(a.v, p, sizeof(a.v));
        return a;
    }
    static void store(std::uint8_t* p, Acc a) { std::memcpy(p, a.v, sizeof(a.v)); }
};

struct DotF32 : EightSums<float> {
    using Left = float;
    using Right = Acc;
    static constexpr int kGroup = 1;
    static constexpr int kLaneBytes = 4;
    static constexpr bool kStagedX = false;
    static constexpr int kWordBytes = 4;
    static constexpr index_t kChunk = kFloatChunk;
    static Left left(const std::uint8_t* p) {
        float x;
        std::memcpy(&x, p, 4);
        return x;
    }
    static Right right(const std::uint8_t* p) { return load(p); }
    static void step(Acc& a, Acc& b, Left x, const Right& w, const Right& v) {
        for (int i = 0; i < 8; ++i) a.v[i] += x * w.v[i];
        for (int i = 0; i < 8; ++i) b.v[i] += x * v.v[i];
    }
};

struct DotBf16 : EightSums<float> {
    struct Pair {
        float even, odd;
    };
    struct Pairs {
        float even[8], odd[8];
    };
    using Left = Pair;
    using Right = Pairs;
    static constexpr int kGroup = 2;
    static constexpr int kLaneBytes = 4;
    static constexpr bool kStagedX = false;
    static constexpr int kWordBytes = 4;
    static constexpr index_t kChunk = kNoChunk;
    static float as_float(std::uint32_t bits) {
        float f;
        std::memcpy(&f, &bits, 4);
        return f;
    }
    static Left left(const std::uint8_t* p) {
        std::uint32_t word;
        std::memcpy(&word, p, 4);
        return {as_float(word << 16), as_float(word & 0xffff0000u)};
    }
    static Right right(const std::uint8_t* p) {
        std::uint32_t words[8];
        std::memcpy(words, p, sizeof(words));
        Pairs w;
        for (int i = 0; i < 8; ++i) {
            w.even[i] = as_float(words[i] << 16);
            w.odd[i] = as_float(words[i] & 0xffff0000u);
        }
        return w;
    }
    static void step(Acc& a, Acc& b, Left x, const Right& w, const Right& v) {
        for (int i = 0; i < 8; ++i) a.v[i] = (a.v[i] + x.even * w.even[i]) + x.odd * w.odd[i];
        for (int i = 0; i < 8; ++i) b.v[i] = (b.v[i] + x.even * v.even[i]) + x.odd * v.odd[i];
    }
};

struct DotU8S8 : EightSums<std::int32_t> {
    struct Pair {
        std::int16_t even, odd;
    };
    struct Bytes {
        std::int8_t v[16];
    };
    using Left = Pair;
    using Right = Bytes;
    static constexpr int kGroup = 2;
    static constexpr int kLaneBytes = 2;
    static constexpr bool kStagedX = true;
    static constexpr int kWordBytes = 4;
    static constexpr index_t kChunk = kNoChunk;
    static Left left(const std::uint8_t* p) {
        Pair x;
        std::memcpy(&x, p, 4);
        return x;
    }
    static Right right(const std::uint8_t* p) {
        Bytes w;
        std::memcpy(w.v, p, sizeof(w.v));
        return w;
    }
    static void step(Acc& a, Acc& b, Left x, const Right& w, const Right& v) {
        for (int i = 0; i < 8; ++i) a.v[i] += x.even * w.v[2 * i] + x.odd * w.v[2 * i + 1];
        for (int i = 0; i < 8; ++i) b.v[i] += x.even * v.v[2 * i] + x.odd * v.v[2 * i + 1];
    }
};

}  // namespace
}  // namespace fastbert
