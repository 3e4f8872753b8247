// One tile: `rows` rows of x times `panels` panels, summed over all of K in registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vec/dot.h"

namespace fastbert {
namespace {

// What a tile brings into a cache while it multiplies: of each word of a panel nothing, one of the
// two vectors or both into L2, or both into L1.
enum class Fetch { none, half, both, near };

struct TileArgs {
    const std::uint8_t* x;  // first row, already of the dot's element type
    index_t x_stride;       // bytes
    index_t words;          // whole words of K
    int tail_bytes;         // of x in the last, partial word
    index_t begin, end;     // of the words that are multiplied; the last of them bring the tail
    const std::uint8_t* panel;
    index_t panel_bytes;
    const std::uint8_t* prefetch;  // in the place of `panel`, where there is something to fetch
    Fetch fetch;
    std::uint8_t* sums;  // (rows, panels * 2 * kLanes) 4-byte sums, written; where words before
                         // `begin` were multiplied, theirs are read
};

// What becomes of the sums that are there when a chunk begins: nothing; it goes on with them; its
// own are added to them.
enum class Before { nothing, resumed, added };

// A compiler must keep acc in registers for the whole loop (28 of 32 for 14 rows on AVX-512): every
// loop over it is unrolled, and none of its elements is ever addressed.
#if defined(__GNUC__) && !defined(__clang__)
#define FASTBERT_UNROLL _Pragma("GCC unroll 32")
#else
#define FASTBERT_UNROLL _Pragma("clang loop unroll(full)")
#endif

template <typename D, int rows, int panels>
inline void tile_chunk(const TileArgs& t, const std::uint8_t* x, index_t x_stride,
                       index_t first_word, index_t words, Before before) {
    constexpr int vectors = 2 * panels;
    constexpr index_t vector_bytes = index_t{D::kLanes} * D::kLaneBytes;
    constexpr index_t sum_bytes = index_t{D::kLanes} * 4;
    // Four panels at once are four streams, which the hardware's own prefetch follows.
    const bool prefetch = panels < 4 && t.fetch != Fetch::none;
    const auto sums_at = [&](int i, int j) { return t.sums + (i * vectors + j) * sum_bytes; };
    typename D::Acc acc[rows][vectors];
    FASTBERT_UNROLL
    for (int i = 0; i < rows; ++i) {
        FASTBERT_UNROLL
        for (int j = 0; j < vectors; ++j) {
            acc[i][j] = before == Before::resumed ? D::load(sums_at(i, j)) : D::zero();
        }
    }
    const std::uint8_t* w = t.panel + first_word * 2 * vector_bytes;
    const std::uint8_t* ahead = prefetch ? t.prefetch + first_word * 2 * vector_bytes : nullptr;
    for (index_t k = 0; k < words; ++k) {
        typename D::Right right[vectors];
        FASTBERT_UNROLL
        for (int j = 0; j < vectors; ++j) {
            right[j] = D::right(w + (j / 2) * t.panel_bytes + (j % 2) * vector_bytes);
        }
        if (prefetch) {
            FASTBERT_UNROLL
            for (int j = 0; j < panels; ++j) {
                const std::uint8_t* line = ahead + j * t.panel_bytes;
                if (t.fetch == Fetch::near) {
                    __builtin_prefetch(line, 0, 3);
                    if constexpr (2 * vector_bytes > 64) {
                        __builtin_prefetch(line + vector_bytes, 0, 3);
                    }
                    continue;
                }
                __builtin_prefetch(line, 0, 2);
                if constexpr (2 * vector_bytes > 64) {
                    if (t.fetch == Fetch::both) __builtin_prefetch(line + vector_bytes, 0, 2);
                }
            }
            ahead += 2 * vector_bytes;
        }
        FASTBERT_UNROLL
        for (int i = 0; i < rows; ++i) {
            const typename D::Left left = D::left(x + i * x_stride);
            FASTBERT_UNROLL
            for (int j = 0; j < vectors; j += 2) {
                D::step(acc[i][j], acc[i][j + 1], left, right[j], right[j + 1]);
            }
        }
        w += 2 * vector_bytes;
        x += D::kWordBytes;
    }
    FASTBERT_UNROLL
    for (int i = 0; i < rows; ++i) {
        FASTBERT_UNROLL
        for (int j = 0; j < vectors; ++j) {
            std::uint8_t* const p = sums_at(i, j);
            D::store(p, before == Before::added ? D::add(D::load(p), acc[i][j]) : acc[i][j]);
        }
    }
}

template <typename D, int rows, int panels>
void tile(const TileArgs& t) {
    constexpr Before further = D::kChunk == kNoChunk ? Before::resumed : Before::added;
    for (index_t k = t.begin; k < t.end; k += D::kChunk) {
        const index_t words = t.end - k < D::kChunk ? t.end - k : D::kChunk;
        tile_chunk<D, rows, panels>(t, t.x + D::kWordBytes * k, t.x_stride, k, words,
                                    k == 0 ? Before::nothing : further);
    }
    if (t.end < t.words || t.tail_bytes == 0) return;
    // The last word of a row is completed with zeros here: its own memory may end with the row.
    constexpr int word = D::kWordBytes;
    std::uint8_t tail[rows * word] = {};
    for (int i = 0; i < rows; ++i) {
        const std::uint8_t* end = t.x + i * t.x_stride + word * t.words;
        for (int b = 0; b < word; ++b) {
            if (b < t.tail_bytes) tail[word * i + b] = end[b];
        }
    }
    tile_chunk<D, rows, panels>(t, tail, word, t.words, 1,
                                t.words == 0 ? Before::nothing : Before::added);
}

// Panels taken at once by a tile of this many rows: one row alone has only two chains of sums, and
// an FMA takes four to five cycles.
template <typename D>
constexpr int panels_at_once(int rows) {
    return !D::kWide || rows > 2 ? 1 : rows == 2 ? 2 : 4;
}

using TileFn = void (*)(const TileArgs&);

template <typename D, int rows>
constexpr TileFn tile_or_null() {
    if constexpr (rows <= D::kRows) {
        return tile<D, rows, 1>;
    } else {
        return nullptr;
    }
}

template <typename D>
struct Tiles {
    static constexpr TileFn by_rows[15] = {
        nullptr,
        tile_or_null<D, 1>(),
        tile_or_null<D, 2>(),
        tile_or_null<D, 3>(),
        tile_or_null<D, 4>(),
        tile_or_null<D, 5>(),
        tile_or_null<D, 6>(),
        tile_or_null<D, 7>(),
        tile_or_null<D, 8>(),
        tile_or_null<D, 9>(),
        tile_or_null<D, 10>(),
        tile_or_null<D, 11>(),
        tile_or_null<D, 12>(),
        tile_or_null<D, 13>(),
        tile_or_null<D, 14>(),
    };
    // For as many panels as panels_at_once() says.
    static constexpr TileFn one_row_wide = tile<D, 1, panels_at_once<D>(1)>;
    static constexpr TileFn two_rows_wide = tile<D, 2, panels_at_once<D>(2)>;
};

}  // namespace
}  // namespace fastbert
