// The two products of attention as small matrix products in registers: scores = Q K^T and, of
// probabilities P, out = P V. Included by attention.inl.
#pragma once

#include "cpu/ops/attention.h"

namespace fastbert {
namespace {
namespace attention_detail {

constexpr int kRows = 6;  // queries per register tile, at most
// 6 x 4 accumulators, 4 operands and a broadcast fill 29 of 32 registers; 6 x 2 fill 15 of 16.
constexpr int kVecs = F32::lanes == 16 ? 4 : 2;
constexpr float kInfinity = __builtin_inff();

alignas(64) constexpr float kLaneNumbers[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                8, 9, 10, 11, 12, 13, 14, 15};

// The first n lanes.
static inline Mask first_of_vector(index_t n) {
    return less(load(kLaneNumbers), set1(static_cast<float>(n)));
}

// acc[r][c] = sum over steps of a[r][step] * b[step][c].
template <class Dot, int Rows, int Vecs>
static inline void multiply_tile(const float* a, index_t a_stride, const float* b, index_t steps,
                                 F32 (&acc)[Rows][Vecs]) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < Vecs; ++c) acc[r][c] = set1(0.0f);
    }
    for (index_t s = 0; s < steps; ++s) {
        typename Dot::Operand column[Vecs];
#pragma GCC unroll 8
        for (int c = 0; c < Vecs; ++c) column[c] = Dot::operand(b + c * F32::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const typename Dot::Operand row = Dot::broadcast(a + r * a_stride + s);
#pragma GCC unroll 8
            for (int c = 0; c < Vecs; ++c) acc[r][c] = Dot::dot(row, column[c], acc[r][c]);
        }
        b += Vecs * F32::lanes;
    }
}

// Where a tile of scores goes.
struct ScoreTarget {
    float* scores;
    index_t stride;
    float* high;   // [rows][lanes]: the largest score of each lane so far
    bool first;    // there is none so far
    index_t seen;  // keys in the last vector; the scores behind them are -inf
};

template <class Dot, int Rows, int Vecs>
static void score_tile(const float* q, const float* k, index_t steps, const ScoreTarget& to) {
    F32 acc[Rows][Vecs];
    multiply_tile<Dot, Rows, Vecs>(q, steps, k, steps, acc);
    // Read once: stores to floats could change what `to` holds, for all a compiler knows.
    float *const scores = to.scores, *const highest = to.high;
    const index_t stride = to.stride;
    const F32 none = set1(-kInfinity);
    const Mask seen = first_of_vector(to.seen), fresh = first_of_vector(to.first ? F32::lanes : 0);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
        acc[r][Vecs - 1] = select(seen, acc[r][Vecs - 1], none);
        F32 high = select(fresh, none, load(highest + r * F32::lanes));
#pragma GCC unroll 8
        for (int c = 0; c < Vecs; ++c) {
            store(scores + r * stride + c * F32::lanes, acc[r][c]);
            high = max(high, acc[r][c]);
        }
        store(highest + r * F32::lanes, high);
    }
}

// Where a tile of P V goes: into sums until the last block of keys, then divided into out.
template <class T>
struct ValueTarget {
    float* sums;
    index_t sums_stride;
    const float* rescale;  // of what is in sums
    const float* inverse;  // of the sum of a row's probabilities
    T* out;
    index_t out_stride;
    index_t columns;  // of out that are left from here
    bool first, last;
};

// Puts acc where `to` says.
template <class Dot, class T, int Rows, int Vecs>
static inline void finish_values(F32 (&acc)[Rows][Vecs], const ValueTarget<T>& to) {
    float* const sums = to.sums;
    const index_t sums_stride = to.sums_stride;
    if (!to.first) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const F32 factor = set1(to.rescale[r]);
#pragma GCC unroll 8
            for (int c = 0; c < Vecs; ++c) {
                const F32 before = load(sums + r * sums_stride + c * F32::lanes);
                acc[r][c] = fma(before, factor, acc[r][c]);
            }
        }
    }
    if (!to.last) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
            for (int c = 0; c < Vecs; ++c) {
                store(sums + r * sums_stride + c * F32::lanes, acc[r][c]);
            }
        }
        return;
    }
    T* const first_row = to.out;
    const float* const inverse = to.inverse;
    const index_t out_stride = to.out_stride, columns = to.columns;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
        const F32 factor = set1(inverse[r]);
        T* const out = first_row + r * out_stride;
        // By name, not by a reference to the array, which would live in memory then.
#pragma GCC unroll 8
        for (int c = 0; c + 1 < Vecs; c += 2) {
            Dot::store_out(out + c * F32::lanes, mul(acc[r][c], factor), mul(acc[r][c + 1], factor),
                           columns - c * F32::lanes);
        }
        if constexpr (Vecs % 2 != 0) {
            Dot::store_out(out + (Vecs - 1) * F32::lanes, mul(acc[r][Vecs - 1], factor),
                           columns - (Vecs - 1) * F32::lanes);
        }
    }
}

template <class Dot, class T, int Rows, int Vecs>
static void value_tile(const float* p, index_t p_stride, const float* v, index_t steps,
                       const ValueTarget<T>& to) {
    F32 acc[Rows][Vecs];
    multiply_tile<Dot, Rows, Vecs>(p, p_stride, v, steps, acc);
    finish_values<Dot, T, Rows, Vecs>(acc, to);
}

template <class Dot>
using ScoreTile = void (*)(const float*, const float*, index_t, const ScoreTarget&);
template <class T>
using ValueTile = void (*)(const float*, index_t, const float*, index_t, const ValueTarget<T>&);

// The tiles by rows - 1 and vectors - 1.
template <class Dot, class T>
struct Tiles {
    ScoreTile<Dot> score[kRows][kVecs];
    ValueTile<T> value[kRows][kVecs];
};

template <class Dot, class T, int Rows, int Vecs>
constexpr void fill_tiles(Tiles<Dot, T>& tiles) {
    tiles.score[Rows - 1][Vecs - 1] = score_tile<Dot, Rows, Vecs>;
    tiles.value[Rows - 1][Vecs - 1] = value_tile<Dot, T, Rows, Vecs>;
    if constexpr (Vecs > 1) {
        fill_tiles<Dot, T, Rows, Vecs - 1>(tiles);
    } else if constexpr (Rows > 1) {
        fill_tiles<Dot, T, Rows - 1, kVecs>(tiles);
    }
}

template <class Dot, class T>
constexpr Tiles<Dot, T> make_tiles() {
    Tiles<Dot, T> tiles{};
    fill_tiles<Dot, T, kRows, kVecs>(tiles);
    return tiles;
}

template <class Dot, class T>
constexpr Tiles<Dot, T> kTiles = make_tiles<Dot, T>();

// The products in registers. An instruction set with a unit of its own for them gives its dot
// another class of this interface.
template <class Dot, class T>
struct RegisterProducts {
    // One panel of keys times up to Dot::tile_rows queries.
    void score(const float* q, const float* k, index_t steps, index_t rows, index_t vectors,
               const ScoreTarget& to) const {
        kTiles<Dot, T>.score[rows - 1][vectors - 1](q, k, steps, to);
    }
    // One panel of values times the probabilities of as many queries.
    void value(const float* p, index_t p_stride, const float* v, index_t steps, index_t rows,
               index_t vectors, const ValueTarget<T>& to) const {
        kTiles<Dot, T>.value[rows - 1][vectors - 1](p, p_stride, v, steps, to);
    }
};

// How operands are laid out for them.
struct RegisterLayout {
    // Queries of a product, at most, and those whose scores are in scratch at once.
    static constexpr index_t tile_rows = kRows, query_block = 4 * kRows;
    // Queries and steps in scratch are multiples of these; steps behind the last are zeros.
    static constexpr index_t row_unit = 1, step_unit = 1;
    template <class Dot, class T>
    using Products = RegisterProducts<Dot, T>;
};

}  // namespace attention_detail
}  // namespace
}  // namespace fastbert
