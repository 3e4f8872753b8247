#include <cstdint>
#include <iterator>
#include <string>

#include "common/check.h"
#include "cuda/gemm/gemm.h"
#include "cuda/launch.h"

namespace fastbert::cuda {

namespace {

// A tile, and what an operation in it costs beside the family's others. The costs follow from the
// operand bytes that a tile reads per operation, and from whether its epilogue runs beside the
// products of another tile; nobody has measured them.
struct Candidate {
    GemmTile tile;
    int cost;
};

// The index is GemmConfig::choice.
constexpr Candidate fma_tiles[] = {{{128, 128}, 2}, {{64, 64}, 3}};
constexpr Candidate mma_tiles[] = {{{128, 128}, 4}, {{64, 64}, 8}};
constexpr Candidate wgmma_tiles[] = {{{128, 256}, 4}, {{64, 64}, 8}, {{128, 128}, 3}};

index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

// Bulk copies address rows that start on 16 bytes.
bool bulk_copies(const Gemm& args) {
    return args.depth > 0 &&
           rows_aligned(args.weight, args.weight_stride, args.depth, args.dtype) &&
           args.weight_stride > 0;
}

Family family_of(const char* op, const Gemm& args, int major) {
    const bool exact = args.dtype == DType::f32;
    const bool bulk = bulk_copies(args);
    switch (args.family) {
        case Family::automatic:
            if (exact) return Family::fma;
            return major == 9 && bulk ? Family::wgmma : Family::mma;
        case Family::fma:
            if (!exact) fail(op, "the fma family multiplies float32 alone.");
            return Family::fma;
        case Family::mma:
            if (exact) fail(op, "the mma family would round float32; use fma.");
            return Family::mma;
        case Family::wgmma:
            if (exact) fail(op, "the wgmma family would round float32; use fma.");
            if (major != 9) {
                fail(op, "the wgmma family runs on compute capability 9, this device has " +
                             std::to_string(major) + ".");
            }
            if (!bulk) {
                fail(op, "the wgmma family needs a weight whose rows start on 16 bytes; K is " +
                             std::to_string(args.depth) + ".");
            }
            return Family::wgmma;
    }
    fail(op, "family code " + std::to_string(static_cast<int>(args.family)) + " is unknown.");
}

}  // namespace

GemmConfig gemm_config(const char* op, const Gemm& args, const DeviceTraits& device) {
    GemmConfig best{};
    best.family = family_of(op, args, device.major);
    const Candidate* candidates = fma_tiles;
    std::size_t count = std::size(fma_tiles);
    if (best.family == Family::mma) {
        candidates = mma_tiles;
        count = std::size(mma_tiles);
    } else if (best.family == Family::wgmma) {
        candidates = wgmma_tiles;
        const bool resident = args.dtype == DType::u8 && args.depth <= max_resident_depth;
        count = std::size(wgmma_tiles) - (resident ? 0 : 1);
    }
    if (args.choice < -1 || args.choice >= static_cast<int>(count)) {
        fail(op, "there is no tile " + std::to_string(args.choice) + "; this product has " +
                     std::to_string(count) + " to choose from.");
    }
    // Kernels count tiles in int and step over the end; the copy engine counts rows so.
    constexpr index_t most = INT32_MAX / 2;
    index_t least = -1;
    for (std::size_t i = 0; i < count; ++i) {
        if (args.choice >= 0 && args.choice != static_cast<int>(i)) continue;
        const GemmTile tile = candidates[i].tile;
        const index_t tiles_m = ceil_div(args.rows, tile.rows);
        const index_t tiles_n = ceil_div(args.width, tile.columns);
        if (tiles_m > most / (tiles_n > 0 ? tiles_n : 1)) continue;
        const index_t tiles = tiles_m * tiles_n;
        const index_t cost =
            ceil_div(tiles, device.multiprocessors) * tile.rows * tile.columns * candidates[i].cost;
        if (least >= 0 && cost >= least) continue;
        least = cost;
        best.choice = static_cast<int>(i);
        best.tile = tile;
        best.tiles_m = static_cast<int>(tiles_m);
        best.tiles_n = static_cast<int>(tiles_n);
    }
    if (least < 0 || args.rows > most || args.width > most) {
        fail(op, std::to_string(args.rows) + " x " + std::to_string(args.width) +
                     " results are more than one launch covers; split the rows.");
    }
    return best;
}

}  // namespace fastbert::cuda
