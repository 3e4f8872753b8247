// The products of attention on AMX, in bfloat16: up to 32 queries times 32 keys, or columns of V,
// in four tiles of sums. Panels of K and V are as vdpbf16ps reads them, of which 16 steps and 16
// columns are one tile. Included by attention.inl, where the instruction set has it.
//
// A tile always has 16 rows: those behind the last query hold whatever was in scratch, and nothing
// reads what comes of them.
#pragma once

#include <cstdint>

#include "cpu/ops/attention_bf16.inl"
#include "cpu/vec/tile_amx.h"

namespace fastbert {
namespace {
namespace attention_detail {

struct TileOperand {
    const float* first;
    index_t stride;  // bytes between rows
};

// c = a b, for one or two tiles of rows and of columns; `steps` of 16 steps each.
template <bool two_rows, bool two_columns>
inline void multiply_tiles(TileOperand a, TileOperand b, index_t steps, float* c,
                           index_t c_stride) {
    _tile_zero(0);
    if constexpr (two_columns) _tile_zero(1);
    if constexpr (two_rows) _tile_zero(2);
    if constexpr (two_rows && two_columns) _tile_zero(3);
    const index_t a_rows = 4 * a.stride, b_rows = 4 * b.stride;  // floats that 16 rows lie apart
    for (index_t s = 0; s < steps; ++s) {
        FASTBERT_TILE_LOAD(4, a.first, a.stride);
        FASTBERT_TILE_LOAD(6, b.first, b.stride);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (two_columns) {
            FASTBERT_TILE_LOAD(7, b.first + 16, b.stride);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (two_rows) {
            FASTBERT_TILE_LOAD(5, a.first + a_rows, a.stride);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (two_columns) _tile_dpbf16ps(3, 5, 7);
        }
        a.first += 16;
        b.first += b_rows;
    }
    float* const below = c + 4 * c_stride;
    FASTBERT_TILE_STORE(0, c, c_stride);
    if constexpr (two_columns) FASTBERT_TILE_STORE(1, c + 16, c_stride);
    if constexpr (two_rows) FASTBERT_TILE_STORE(2, below, c_stride);
    if constexpr (two_rows && two_columns) FASTBERT_TILE_STORE(3, below + 16, c_stride);
}

template <class Dot, class T>
class TileProducts {
  public:
    TileProducts() { unit_.configure(32); }

    void score(const float* q, const float* k, index_t steps, index_t rows, index_t vectors,
               const ScoreTarget& to) const {
        multiply({q, 4 * steps}, k, steps, rows, vectors, to.scores, to.stride);
        const F32 none = set1(-kInfinity);
        const Mask seen = first_of_vector(to.seen);
        for (index_t r = 0; r < rows; ++r) {
            float* const row = to.scores + r * to.stride;
            float* const last = row + (vectors - 1) * F32::lanes;
            store(last, select(seen, load(last), none));
            F32 high = to.first ? none : load(to.high + r * F32::lanes);
            for (index_t c = 0; c < vectors; ++c) high = max(high, load(row + c * F32::lanes));
            store(to.high + r * F32::lanes, high);
        }
    }

    void value(const float* p, index_t p_stride, const float* v, index_t steps, index_t rows,
               index_t vectors, const ValueTarget<T>& to) const {
        alignas(64) float products[Dot::tile_rows * kPanel];
        multiply({p, 4 * p_stride}, v, steps, rows, vectors, products, kPanel);
        for (index_t r = 0; r < rows; ++r) {
            const ValueTarget<T> row{to.sums + r * to.sums_stride,
                                     to.sums_stride,
                                     to.rescale + r,
                                     to.inverse + r,
                                     to.out + r * to.out_stride,
                                     to.out_stride,
                                     to.columns,
                                     to.first,
                                     to.last};
            kFinish[vectors - 1](products + r * kPanel, row);
        }
    }

  private:
    static void multiply(TileOperand a, const float* b, index_t steps, index_t rows,
                         index_t vectors, float* c, index_t c_stride) {
        const index_t b_stride = vectors * F32::lanes * 4;
        for (index_t column = 0; column < vectors; column += 2) {
            const bool two_rows = rows > 16, two_columns = column + 1 < vectors;
            const auto tiles =
                two_rows ? two_columns ? multiply_tiles<true, true> : multiply_tiles<true, false>
                : two_columns ? multiply_tiles<false, true>
                              : multiply_tiles<false, false>;
            tiles(a, {b + column * F32::lanes, b_stride}, steps / Dot::step_unit,
                  c + column * F32::lanes, 4 * c_stride);
        }
    }

    template <int Vecs>
    static void finish(const float* products, const ValueTarget<T>& to) {
        F32 acc[1][Vecs];
#pragma GCC unroll 8
        for (int c = 0; c < Vecs; ++c) acc[0][c] = load(products + c * F32::lanes);
        finish_values<Dot, T, 1, Vecs>(acc, to);
    }
    static_assert(kVecs == 4);
    static constexpr void (*kFinish[kVecs])(const float*, const ValueTarget<T>&) = {
        finish<1>, finish<2>, finish<3>, finish<4>};

    TileUnit unit_;
};

struct DotAmx : DotBf16 {
    static constexpr index_t tile_rows = 32, query_block = 32;
    static constexpr index_t row_unit = 16, step_unit = 16;
    template <class Dot, class T>
    using Products = TileProducts<Dot, T>;

    // Steps up to a multiple of step_unit, zeros behind the last.
    static inline void copy_row(const bf16_t* src, index_t n, float* dst) {
        for (index_t i = 0; i < n; i += 32) {
            _mm512_storeu_si512(dst + i / 2, _mm512_maskz_loadu_epi16(first_words(n - i), src + i));
        }
    }
};

}  // namespace attention_detail
}  // namespace
}  // namespace fastbert
