// A range of rows times a range of panels on AMX. Included by gemm.inl, where the set has it.
//
// A product of two tiles takes 16 cycles, and bringing one of their 1 KiB from L2 takes more than
// that. So several tiles of rows share a piece of a panel that stays in L1, while the rows pass
// from L2 with the hint that L1 need not keep them (without it, they drive the piece out: 1300
// instead of 1700 GFLOP/s at K = 1024). K is cut into chunks, and what the chunks before gave is
// kept in L2 for a group of panels. A chunk's piece of the rows stays in L2 while the panels of the
// group pass. Sums kept between chunks are the same float32 or int32 that the unit holds, so that
// cutting changes no bit.
#pragma once

#include <cstdint>

#include "cpu/ops/gemm.h"
#include "cpu/ops/gemm_epilogue.inl"
#include "cpu/ops/gemm_pack.inl"
#include "cpu/vec/tile_amx.h"

namespace fastbert {
namespace {

constexpr index_t kTmulColumns = 32, kTmulRows = 32;  // of a tile
constexpr index_t kTmulTileBytes = kTmulColumns * kTmulRows * 4;
// Steps of a chunk, at most: 32 KiB of the panel, of the 48 KiB of L1. Fewer put sums aside more
// often, which costs as much as four steps.
constexpr index_t kTmulChunk = 16;
constexpr index_t kTmulBlock = 1024;  // rows of x at once
constexpr index_t kTmulPanels = 8;    // of a group

template <bool integer>
class TmulGemm {
  public:
    // sums: kTmulTileBytes for each panel of a group and tile of rows at once.
    TmulGemm(const GemmArgs& args, index_t panel_begin, index_t panel_end, void* sums)
        : g_(args),
          panel_begin_(panel_begin),
          panel_end_(panel_end),
          planes_(integer ? gemm_planes(args) : 1),
          kept_(static_cast<std::uint8_t*>(sums)) {
        const PackedHeader h = header_of(args.packed);
        column_sums_ = reinterpret_cast<const std::int32_t*>(args.packed + sizeof(PackedHeader));
        panels_ = args.packed + sizeof(PackedHeader) + column_sum_bytes(h);
        panel_bytes_ = panel_bytes(h);
        bytes_ = h.bytes;
        const index_t row_bytes = args.k * (integer ? 1 : 2);
        tail_bytes_ = row_bytes % kStepBytes;
        steps_ = row_bytes / kStepBytes + (tail_bytes_ > 0);
        chunks_ = (steps_ + kTmulChunk - 1) / kTmulChunk;
    }

    void rows(index_t row_begin, index_t row_end, const StagedRows& x) {
        const index_t at_once = kTmulBlock / planes_;
        for (index_t row = row_begin; row < row_end; row += at_once) {
            const index_t end = row + at_once < row_end ? row + at_once : row_end;
            const Rows block{x.x + (row - row_begin) * planes_ * x.stride, x.stride, row,
                             (end - row) * planes_};
            block.count <= kTmulRows ? stream(block) : multiply(block);
        }
    }

  private:
    // Rows of x, of which the first gives row `row` of the result.
    struct Rows {
        const std::uint8_t* x;
        index_t stride;
        index_t row, count;
        index_t tiles() const { return (count + kTmulRows - 1) / kTmulRows; }
    };

    index_t chunk_begin(index_t chunk) const { return steps_ * chunk / chunks_; }

    // One tile takes every panel once, and its weights two pages ahead, over the end of the panel
    // into the next. Those that are in L2 anyway are left alone: there it costs more than it
    // brings.
    void stream(const Rows& block) {
        constexpr index_t distance = 8192, cached = index_t{8} << 20;
        const bool streamed = (integer && g_.x_halves) || bytes_ > cached;
        for (index_t p = panel_begin_; p < panel_end_; ++p) {
            TmulPart part = part_of(block, 0, p, 0, steps_);
            part.sums = one_;
            if (streamed) part.ahead = {part.panel + distance, kStepPanel / 64};
            prefetch_out(g_, done(block, 0, p, one_), kTmulColumns);
            tmul_tile<integer, Kept::rows>(unit_, part);
            finish(block, 0, p, one_);
        }
    }

    void multiply(const Rows& block) {
        const index_t panels = panel_end_ - panel_begin_;
        const index_t groups = (panels + kTmulPanels - 1) / kTmulPanels;
        for (index_t group = 0; group < groups; ++group) {
            const index_t begin = panel_begin_ + panels * group / groups;
            const index_t end = panel_begin_ + panels * (group + 1) / groups;
            for (index_t chunk = 0; chunk < chunks_; ++chunk) {
                for (index_t p = begin; p < end; ++p) piece(block, p, begin, end, chunk);
            }
        }
    }

    // All rows times one chunk of a panel, which is in L1 from the first tile on.
    void piece(const Rows& block, index_t panel, index_t begin, index_t end, index_t chunk) {
        const index_t first = chunk_begin(chunk), steps = chunk_begin(chunk + 1) - first;
        const bool last = chunk + 1 == chunks_;
        const index_t tiles = block.tiles();
        // Lines of out that are on their way while two tiles are summed.
        const auto expect = [&](index_t t) {
            if (last && t < tiles) prefetch_out(g_, done(block, t, panel, one_), kTmulColumns);
        };
        expect(0);
        expect(1);
        // Every tile brings its share of the next piece: all of it at once would hold up the rows.
        const std::uint8_t* const next = next_piece(panel, begin, end, chunk);
        const index_t lines = (kStepPanel / 64 + tiles - 1) / tiles;
        for (index_t t = 0; t < tiles; ++t) {
            expect(t + 2);
            TmulPart part = part_of(block, t * kTmulRows, panel, first, steps);
            part.sums =
                chunks_ == 1 ? one_ : kept_ + ((panel - begin) * tiles + t) * kTmulTileBytes;
            if (next != nullptr) part.ahead = {next + t * steps * 64 * lines, lines};
            tmul_tile<integer, Kept::panel>(unit_, part);
            if (last) finish(block, t, panel, part.sums);
        }
    }

    const std::uint8_t* next_piece(index_t panel, index_t begin, index_t end, index_t chunk) const {
        index_t next = panel + 1;
        if (next == end) {
            next = begin;
            if (++chunk == chunks_) {
                chunk = 0;
                next = end;
            }
        }
        if (next == panel_end_) return nullptr;
        return panels_ + next * panel_bytes_ + chunk_begin(chunk) * kStepPanel;
    }

    TmulPart part_of(const Rows& block, index_t row, index_t panel, index_t first,
                     index_t steps) const {
        TmulPart part;
        part.x = block.x + row * block.stride + first * kStepBytes;
        part.x_stride = block.stride;
        const index_t rest = block.count - row;
        part.rows = static_cast<int>(rest < kTmulRows ? rest : kTmulRows);
        part.panel = panels_ + panel * panel_bytes_ + first * kStepPanel;
        const bool tail = tail_bytes_ > 0 && first + steps == steps_;
        part.steps = steps - tail;
        part.tail_bytes = tail ? tail_bytes_ : 0;
        part.first = first == 0;
        return part;
    }

    TileSums done(const Rows& block, index_t tile, index_t panel, const std::uint8_t* sums) const {
        const index_t row = tile * kTmulRows, rest = block.count - row;
        const index_t count = rest < kTmulRows ? rest : kTmulRows;
        return {sums, 4 * kTmulColumns, block.row + row / planes_,
                static_cast<int>(count / planes_), panel * kTmulColumns};
    }

    void finish(const Rows& block, index_t tile, index_t panel, std::uint8_t* sums) const {
        finish_panels<integer>(g_, column_sums_, sums, done(block, tile, panel, sums), kTmulColumns,
                               1);
    }

    const GemmArgs& g_;
    const index_t panel_begin_, panel_end_;
    const index_t planes_;
    std::uint8_t* const kept_;
    const std::int32_t* column_sums_;
    const std::uint8_t* panels_;
    index_t panel_bytes_, bytes_;
    index_t tail_bytes_, steps_, chunks_;
    TileUnit unit_;
    alignas(64) std::uint8_t one_[kTmulTileBytes] = {};  // sums of one tile, at once written to out
};

}  // namespace
}  // namespace fastbert
