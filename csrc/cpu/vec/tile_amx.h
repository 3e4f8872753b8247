// Tiles on AMX: up to 32 rows of x times one panel of 32 columns, in four tiles of sums. The panels
// are those of AVX-512: 16 words of 16 columns, rows 128 bytes apart, are one tile. A step is 64
// bytes of every row, and 2 KiB of the panel.
//
// Integer sums are exact, hence those of VNNI. A bfloat16 product is rounded in this unit's own
// way (denormal numbers are zeros), so it runs here for any number of rows.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/types.h"
#include "cpu/vec/dot.h"

namespace fastbert {
namespace {

#if defined(__AMX_TILE__)

struct TmulBf16 : FloatSums {
    static constexpr int kGroup = 2;
};
constexpr index_t kStepBytes = 64, kStepPanel = 2048;

// As instructions: GCC 12's intrinsics do not say what memory they read, so that stores before them
// are dropped.
#define FASTBERT_TILE_READ(how, tile, p, stride) \
    __asm__ volatile(how " (%0,%1,1), %%tmm" #tile::"r"(p), "r"(index_t{stride}) : "memory")
#define FASTBERT_TILE_LOAD(tile, p, stride) FASTBERT_TILE_READ("tileloadd", tile, p, stride)
// With the hint that L1 need not keep what is read.
#define FASTBERT_TILE_PASS(tile, p, stride) FASTBERT_TILE_READ("tileloaddt1", tile, p, stride)
#define FASTBERT_TILE_STORE(tile, p, stride)                                               \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(p), "r"(index_t{stride}) \
                     : "memory")

#define FASTBERT_TMUL(sums, x, w)   \
    if constexpr (integer) {        \
        _tile_dpbusd(sums, x, w);   \
    } else {                        \
        _tile_dpbf16ps(sums, x, w); \
    }

// Held while tiles are in use. Gives them back at the end, so that a switch of threads does not
// save their 8 KiB.
class TileUnit {
  public:
    TileUnit() = default;
    TileUnit(const TileUnit&) = delete;
    TileUnit& operator=(const TileUnit&) = delete;
    ~TileUnit() {
        if (rows_ != 0) _tile_release();
    }

    // For 1 to 32 rows: sums in tiles 0 and 1, of rows beyond 16 in 2 and 3; rows in 4 and 5;
    // columns in 6 and 7.
    void configure(int rows) {
        if (rows == rows_) return;
        rows_ = rows;
        const int first = rows > 16 ? 16 : rows, second = rows > 16 ? rows - 16 : 1;
        Config c;
        for (int tile = 0; tile < 8; ++tile) {
            const bool late = tile == 2 || tile == 3 || tile == 5;
            c.row_bytes[tile] = 64;
            c.rows[tile] = static_cast<std::uint8_t>(tile > 5 ? 16 : late ? second : first);
        }
        __asm__ volatile("ldtilecfg %0" ::"m"(c));
    }

  private:
    struct Config {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t row_bytes[16] = {};
        std::uint8_t rows[16] = {};
    };
    static_assert(sizeof(Config) == 64);

    int rows_ = 0;
};

// Which of the two operands other products read again soon, and L1 keeps.
enum class Kept { rows, panel };

#define FASTBERT_TILE_ROWS(tile, p, stride)  \
    if constexpr (kept == Kept::rows) {      \
        FASTBERT_TILE_LOAD(tile, p, stride); \
    } else {                                 \
        FASTBERT_TILE_PASS(tile, p, stride); \
    }
#define FASTBERT_TILE_PANEL(tile, p)      \
    if constexpr (kept == Kept::panel) {  \
        FASTBERT_TILE_LOAD(tile, p, 128); \
    } else {                              \
        FASTBERT_TILE_PASS(tile, p, 128); \
    }

// What to bring into L2 meanwhile, `lines` cache lines a step; null: nothing.
struct Ahead {
    const std::uint8_t* at = nullptr;
    index_t lines = 0;
};

template <bool integer, bool two, Kept kept>
inline void tmul_steps(const std::uint8_t* x, index_t x_stride, const std::uint8_t* w,
                       index_t steps, Ahead ahead) {
    for (index_t s = 0; s < steps; ++s) {
        if (ahead.at != nullptr) {
            for (index_t line = 0; line < ahead.lines; ++line, ahead.at += 64) {
                __builtin_prefetch(ahead.at, 0, 2);
            }
        }
        FASTBERT_TILE_ROWS(4, x, x_stride)
        FASTBERT_TILE_PANEL(6, w)
        FASTBERT_TMUL(0, 4, 6)
        FASTBERT_TILE_PANEL(7, w + 64)
        FASTBERT_TMUL(1, 4, 7)
        if constexpr (two) {
            FASTBERT_TILE_ROWS(5, x + 16 * x_stride, x_stride)
            FASTBERT_TMUL(2, 5, 6)
            FASTBERT_TMUL(3, 5, 7)
        }
        x += kStepBytes;
        w += kStepPanel;
    }
}

// Some steps of up to 32 rows, and where their sums are: those of the steps before are read from
// there, unless these are the first.
struct TmulPart {
    const std::uint8_t* x;  // first row, first step
    index_t x_stride;       // bytes
    int rows;
    const std::uint8_t* panel;
    index_t steps;       // whole ones
    index_t tail_bytes;  // of a row in the step behind them, whose memory may end there
    bool first;
    std::uint8_t* sums;  // 32 rows of 128 bytes
    Ahead ahead;
};

template <bool integer, bool two, Kept kept>
inline void tmul_sums(const TmulPart& t) {
    if (t.first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        FASTBERT_TILE_LOAD(0, t.sums, 128);
        FASTBERT_TILE_LOAD(1, t.sums + 64, 128);
        if constexpr (two) {
            FASTBERT_TILE_LOAD(2, t.sums + 16 * 128, 128);
            FASTBERT_TILE_LOAD(3, t.sums + 16 * 128 + 64, 128);
        }
    }
    tmul_steps<integer, two, kept>(t.x, t.x_stride, t.panel, t.steps, t.ahead);
    if (t.tail_bytes > 0) {
        // The rest of K on copies with zeros behind it: what follows in memory may be NaN, or none.
        alignas(64) std::uint8_t x[32 * kStepBytes] = {}, w[kStepPanel] = {};
        for (int i = 0; i < t.rows; ++i) {
            std::memcpy(x + kStepBytes * i, t.x + i * t.x_stride + kStepBytes * t.steps,
                        static_cast<std::size_t>(t.tail_bytes));
        }
        std::memcpy(w, t.panel + kStepPanel * t.steps,
                    static_cast<std::size_t>(128 * ((t.tail_bytes + 3) / 4)));
        tmul_steps<integer, two, kept>(x, kStepBytes, w, 1, {});
    }
    FASTBERT_TILE_STORE(0, t.sums, 128);
    FASTBERT_TILE_STORE(1, t.sums + 64, 128);
    if constexpr (two) {
        FASTBERT_TILE_STORE(2, t.sums + 16 * 128, 128);
        FASTBERT_TILE_STORE(3, t.sums + 16 * 128 + 64, 128);
    }
}

template <bool integer, Kept kept>
inline void tmul_tile(TileUnit& unit, const TmulPart& t) {
    unit.configure(t.rows);
    t.rows > 16 ? tmul_sums<integer, true, kept>(t) : tmul_sums<integer, false, kept>(t);
}

// As steps() of ops/peak.inl: products of tiles without their loads.
template <bool integer>
double tmul_peak(index_t rounds, void* sink) {
    alignas(64) std::uint8_t buffer[1024] = {};
    TileUnit unit;
    unit.configure(32);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    FASTBERT_TILE_LOAD(4, buffer, 64);
    FASTBERT_TILE_LOAD(5, buffer, 64);
    FASTBERT_TILE_LOAD(6, buffer, 64);
    FASTBERT_TILE_LOAD(7, buffer, 64);
    for (index_t n = 0; n < rounds; ++n) {
        FASTBERT_TMUL(0, 4, 6)
        FASTBERT_TMUL(1, 4, 7)
        FASTBERT_TMUL(2, 5, 6)
        FASTBERT_TMUL(3, 5, 7)
    }
    FASTBERT_TILE_STORE(0, buffer, 64);
    *static_cast<std::uint8_t*>(sink) = buffer[0];
    return static_cast<double>(rounds) * 4 * 16 * 16 * (integer ? 64 : 32);
}

#undef FASTBERT_TMUL
#undef FASTBERT_TILE_ROWS
#undef FASTBERT_TILE_PANEL

#endif

}  // namespace
}  // namespace fastbert
