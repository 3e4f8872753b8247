// A range of rows times a range of panels (GemmKernels::RangeFn). Panels outside, rows inside: a
// panel stays in L2 (96 KiB for float32 and K = 768) while the rows pass, each tile of rows from L2
// or L3.
#pragma once

#include <cstdint>

#include "cpu/ops/gemm.h"
#include "cpu/ops/gemm_epilogue.inl"
#include "cpu/ops/gemm_pack.inl"
#include "cpu/ops/gemm_tile.inl"

namespace fastbert {
namespace {

// Rows as the tiles read them.
struct StagedRows {
    const std::uint8_t* x;
    index_t stride;  // bytes
};

inline void stage_row(const float* x, index_t k, float* out) {
    std::memcpy(out, x, static_cast<std::size_t>(k) * sizeof(float));
}
inline void stage_row(const bf16_t* x, index_t k, bf16_t* out) {
    std::memcpy(out, x, static_cast<std::size_t>(k) * sizeof(bf16_t));
}
inline void stage_row(const std::uint8_t* x, index_t k, std::uint8_t* out) {
    std::memcpy(out, x, static_cast<std::size_t>(k));
}
inline void stage_row(const std::uint8_t* x, index_t k, std::int16_t* out) {
    for (index_t i = 0; i < k; ++i) out[i] = x[i];
}
template <typename Half>
inline void stage_row(const Half* x, index_t k, float* out) {
    index_t i = 0;
    for (; i + F32::lanes <= k; i += F32::lanes) store(out + i, load(x + i));
    const int rest = static_cast<int>(k - i);
    if (rest > 0) store_n(out + i, load_n(x + i, rest), rest);
}

template <typename To, typename From>
inline StagedRows stage(const GemmArgs& g, index_t row_begin, index_t row_end, index_t stride_bytes,
                        void* scratch) {
    auto* out = static_cast<std::uint8_t*>(scratch);
    for (index_t r = row_begin; r < row_end; ++r) {
        stage_row(static_cast<const From*>(g.x) + r * g.x_stride, g.k,
                  reinterpret_cast<To*>(out + (r - row_begin) * stride_bytes));
    }
    return {out, stride_bytes};
}

template <typename D>
StagedRows rows_for(const GemmArgs& g, index_t row_begin, index_t row_end,
                    const GemmStaging& staging, void* scratch) {
    if (staging.rows == 0) {
        const index_t stride = g.x_stride * size_of(g.x_dtype);
        return {static_cast<const std::uint8_t*>(g.x) + row_begin * stride, stride};
    }
    const index_t stride = staging.stride_bytes;
    switch (g.x_dtype) {
        case DType::f16:
            return stage<float, f16_t>(g, row_begin, row_end, stride, scratch);
        case DType::bf16:
            if constexpr (D::kStagedX) {
                return stage<float, bf16_t>(g, row_begin, row_end, stride, scratch);
            } else {
                return stage<bf16_t, bf16_t>(g, row_begin, row_end, stride, scratch);
            }
        case DType::u8:
            if constexpr (D::kStagedX) {
                return stage<std::int16_t, std::uint8_t>(g, row_begin, row_end, stride, scratch);
            } else {
                return stage<std::uint8_t, std::uint8_t>(g, row_begin, row_end, stride, scratch);
            }
        default:
            return stage<float, float>(g, row_begin, row_end, stride, scratch);
    }
}

// Weights of one product that a cache is taken to keep from call to call.
constexpr index_t kCachedProduct = index_t{8} << 20;

// Tiles of rows up to which reading weights from memory takes long beside multiplying them. Beyond,
// a panel waits in L2 while they pass.
constexpr index_t kFewTiles = 4;

template <typename D>
class RangeGemm {
  public:
    static constexpr bool integer = D::kLaneBytes / D::kGroup == 1;
    static constexpr int columns = 2 * D::kLanes;
    static_assert(!integer || D::kRows % 2 == 0, "a tile holds both halves of its rows");

    RangeGemm(const GemmArgs& args, index_t panel_begin, index_t panel_end)
        : g_(args), panel_begin_(panel_begin), panel_end_(panel_end) {
        const PackedHeader h = header_of(args.packed);
        column_sums_ = reinterpret_cast<const std::int32_t*>(args.packed + sizeof(PackedHeader));
        panels_ = args.packed + sizeof(PackedHeader) + column_sum_bytes(h);
        large_ = h.bytes > kCachedProduct;
        tile_.panel_bytes = panel_bytes(h);
        tile_.words = args.k / D::kGroup;
        tile_.tail_bytes = static_cast<int>(args.k % D::kGroup) * (D::kWordBytes / D::kGroup);
        tile_.begin = 0;
        tile_.end = tile_.words;
        tile_.sums = sums_;
    }

    // Rows in tiles of full height, which use the multipliers best (97 % of the limit at 14 rows
    // against 90 to 92 % at 10, 11 and 13); the last two share what is left: 18 rows are 9 + 9, not
    // 14 + 4.
    void rows(index_t row_begin, index_t row_end, const StagedRows& x) {
        const index_t planes = integer ? gemm_planes(g_) : 1;
        const index_t rows = (row_end - row_begin) * planes;
        const index_t tiles = (rows + D::kRows - 1) / D::kRows;
        if (streams(rows, tiles)) {
            for (index_t p = panel_begin_; p < panel_end_; ++p) {
                stream_panel(p, row_begin, rows, tiles, x);
            }
            return;
        }
        for (index_t p = panel_begin_; p < panel_end_;) {
            int panels = 1;
            if (tiles == 1 && p + panels_at_once<D>(static_cast<int>(rows)) <= panel_end_) {
                panels = panels_at_once<D>(static_cast<int>(rows));
            }
            index_t row = 0;
            for (index_t left = tiles; left > 0; --left) {
                const int count = tile_rows(rows - row, left);
                tile_.x = x.x + row * x.stride;
                tile_.x_stride = x.stride;
                prefetch(p, count, tiles, left);
                one_tile(p, panels, row_begin + row / planes, count);
                row += count;
            }
            p += panels;
        }
    }

  private:
    static constexpr index_t kVector = index_t{D::kLanes} * D::kLaneBytes;
    static constexpr index_t kPage = 4096;
    static constexpr index_t kShort = 11;
    // Eight rows pass a page sooner than memory answers.
    static constexpr index_t kAhead = 2 * kPage;

    // Whether weights come from memory, and reading them takes long beside multiplying them. 8-bit
    // rows are multiplied in half the time of others, so that what tall tiles lose between pages
    // counts for more (docs/lab/small-batches.md).
    bool streams(index_t rows, index_t tiles) const {
        if (!(g_.streamed || large_) || tiles > kFewTiles) return false;
        if (!integer || g_.x_halves || tiles == 1) return true;
        return tiles < kFewTiles && rows - (tiles - 2) * D::kRows <= 2 * kShort;
    }

    int tile_rows(index_t rest, index_t tiles_left) const {
        if (tiles_left > 2) return D::kRows;
        const int count = static_cast<int>(tiles_left == 2 ? (rest + 1) / 2 : rest);
        // Both halves of a row are summed by the same tile.
        return integer && g_.x_halves ? count + count % 2 : count;
    }

    // A panel that comes from memory, for a few tiles of rows: a page of it at a time for all of
    // them, of whom the first brings what lies further on, over the end of the panel. Were whole
    // panels passed by one tile after the other, memory would wait for the others.
    void stream_panel(index_t panel, index_t row_begin, index_t rows, index_t tiles,
                      const StagedRows& x) {
        constexpr index_t row_sums = index_t{4} * columns;
        constexpr index_t page_words = kPage / (2 * kVector);
        // Sums of chunks are added in the order of the chunks, whatever is taken at a time.
        constexpr index_t least = D::kChunk == kNoChunk ? page_words : D::kChunk;
        const index_t step = tiles == 1 ? tile_.words : least;
        const bool halves = integer && g_.x_halves;
        const TileSums done{sums_, row_sums, row_begin, static_cast<int>(halves ? rows / 2 : rows),
                            panel * columns};
        prefetch_out(g_, done, columns);
        tile_.panel = panels_ + panel * tile_.panel_bytes;
        tile_.prefetch = tile_.panel + kAhead;
        tile_.x_stride = x.stride;
        index_t begin = 0;
        do {
            tile_.begin = begin;
            tile_.end = tile_.words - begin < step ? tile_.words : begin + step;
            index_t row = 0;
            for (index_t left = tiles; left > 0; --left) {
                const int count = tile_rows(rows - row, left);
                tile_.x = x.x + row * x.stride;
                tile_.sums = sums_ + row * row_sums;
                tile_.fetch = row == 0 ? Fetch::near : Fetch::none;
                Tiles<D>::by_rows[count](tile_);
                row += count;
            }
            begin = tile_.end;
        } while (begin < tile_.words);
        finish_panels<integer>(g_, column_sums_, sums_, done, columns, 1);
    }

    // More than a few rows have the last of their tiles bring the next panel. Where no cache holds
    // the weights of this product alone, or halves double the tiles, it waits for memory: the last
    // two share the panel.
    void prefetch(index_t panel, int x_rows, index_t tiles, index_t left) {
        const std::uint8_t* own = panels_ + panel * tile_.panel_bytes;
        tile_.fetch = Fetch::none;
        if (x_rows < 5 || panel + 1 == panel_end_) return;
        tile_.prefetch = own + tile_.panel_bytes;
        const bool shared = large_ || (integer && g_.x_halves);
        if (shared && tiles > 1 && left <= 2 && 2 * kVector > 64) {
            tile_.prefetch += (left - 1) * kVector;
            tile_.fetch = Fetch::half;
        } else if (left == 1) {
            tile_.fetch = Fetch::both;
        }
    }

    // x_rows: rows of x, of which two give one row of the result where they are halves.
    void one_tile(index_t panel, int panels, index_t row, int x_rows) {
        const bool halves = integer && g_.x_halves;
        tile_.panel = panels_ + panel * tile_.panel_bytes;
        const TileSums done{sums_, index_t{4} * columns * panels, row, halves ? x_rows / 2 : x_rows,
                            panel * columns};
        if (panels == 1) {
            prefetch_out(g_, done, columns);
            Tiles<D>::by_rows[x_rows](tile_);
        } else {
            (x_rows == 1 ? Tiles<D>::one_row_wide : Tiles<D>::two_rows_wide)(tile_);
        }
        finish_panels<integer>(g_, column_sums_, sums_, done, columns, panels);
    }

    // Zeroed, since lanes of F32 and of the dot may differ and no read may find what was never set.
    alignas(64) std::uint8_t sums_[index_t{4} * columns * kFewTiles * D::kRows] = {};
    const GemmArgs& g_;
    index_t panel_begin_, panel_end_;
    const std::int32_t* column_sums_;
    const std::uint8_t* panels_;
    bool large_;
    TileArgs tile_{};
};

}  // namespace
}  // namespace fastbert

#if defined(__AMX_TILE__)
#include "cpu/ops/gemm_amx.inl"
#endif

namespace fastbert {
namespace {

template <typename D, typename Gemm>
void each_stage(const GemmArgs& g, index_t row_begin, index_t row_end, const GemmStaging& staging,
                void* scratch, Gemm& gemm) {
    const index_t planes = gemm_planes(g);
    const index_t block = staging.rows == 0 ? row_end - row_begin : staging.rows / planes;
    for (index_t r = row_begin; r < row_end; r += block) {
        const index_t end = r + block < row_end ? r + block : row_end;
        gemm.rows(r, end, rows_for<D>(g, r * planes, end * planes, staging, scratch));
    }
}

template <typename D>
void gemm_range(const GemmArgs& g, index_t row_begin, index_t row_end, index_t panel_begin,
                index_t panel_end, void* scratch) {
    RangeGemm<D> gemm(g, panel_begin, panel_end);
    each_stage<D>(g, row_begin, row_end, gemm_staging(g, D::kStagedX), scratch, gemm);
}

#if defined(__AMX_TILE__)
template <typename D, bool integer>
void tmul_range(const GemmArgs& g, index_t row_begin, index_t row_end, index_t panel_begin,
                index_t panel_end, void* scratch) {
    const GemmStaging staging = gemm_staging(g, D::kStagedX);
    char* const sums = static_cast<char*>(scratch) + staging.rows * staging.stride_bytes;
    TmulGemm<integer> gemm(g, panel_begin, panel_end, sums);
    each_stage<D>(g, row_begin, row_end, staging, scratch, gemm);
}

// Sums of integers are the same either way, and a few rows have too little work for the unit.
void gemm_range_s8(const GemmArgs& g, index_t row_begin, index_t row_end, index_t panel_begin,
                   index_t panel_end, void* scratch) {
    const bool few = (row_end - row_begin) * gemm_planes(g) <= 4;
    (few ? gemm_range<DotU8S8> : tmul_range<DotU8S8, true>)(g, row_begin, row_end, panel_begin,
                                                            panel_end, scratch);
}
using ProductBf16 = TmulBf16;
constexpr GemmKernels::RangeFn gemm_range_bf16 = tmul_range<TmulBf16, false>;
constexpr index_t kKeptRows = kTmulBlock, kKeptBytes = 4 * kTmulColumns * kTmulPanels;
#else
constexpr GemmKernels::RangeFn gemm_range_s8 = gemm_range<DotU8S8>;
using ProductBf16 = DotBf16;
constexpr GemmKernels::RangeFn gemm_range_bf16 = gemm_range<DotBf16>;
constexpr index_t kKeptRows = 0, kKeptBytes = 0;
#endif

constexpr GemmKernels gemm_kernels = {
    layout_of<DotF32>(),
    layout_of<ProductBf16>(),
    layout_of<DotU8S8>(),
    pack,
    gemm_range<DotF32>,
    gemm_range_bf16,
    gemm_range_s8,
    DotU8S8::kStagedX,
    ProductBf16::kStagedX,
    kKeptRows,
    kKeptBytes,
};

}  // namespace
}  // namespace fastbert
