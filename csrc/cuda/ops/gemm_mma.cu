// Products on mma.sync: operands through cp.async stages in shared memory, for sm_80 and everything
// later that has no form of its own, and for K that bulk copies cannot address.
//
// A slab is 64 bytes of K, whatever an element is: m16n8k16 of 16-bit and m16n8k32 of 8-bit
// operands keep the same bytes in the same registers, so one kernel serves all three. Every
// accumulator takes k in ascending steps of 32 bytes; zeros fill the last slab.
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/families.h"
#include "cuda/ptx.cuh"

namespace fastbert::cuda {

namespace {

constexpr int slab_bytes = 64;
constexpr int chunk_bytes = 16;
constexpr int chunks = slab_bytes / chunk_bytes;
constexpr int step_bytes = 32;  // of K in one mma.sync
constexpr int stages = 4;

// Offset of a chunk of a row in a stage. Two rows fill the 32 banks; the exchange lets ldmatrix
// read one chunk of eight rows without a conflict.
__device__ int chunk_at(int row, int chunk) {
    return row * slab_bytes + ((chunk ^ ((row >> 1) & 3)) * chunk_bytes);
}

template <DType D>
struct Operands {
    using Accumulator = float;
    using Element = std::uint16_t;
    static __device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
        ptx::multiply_16x8x16<D>(c, a, b0, b1);
    }
};
template <>
struct Operands<DType::u8> {
    using Accumulator = std::int32_t;
    using Element = std::uint8_t;
    static __device__ void multiply(std::int32_t (&c)[4], const std::uint32_t (&a)[4],
                                    std::uint32_t b0, std::uint32_t b1) {
        ptx::multiply_16x8x32(c, a, b0, b1);
    }
};

// One operand: rows of K, everything in bytes.
struct Rows {
    const std::uint8_t* data;
    index_t stride;
    index_t rows;
    int depth;
};

// Copies rows [first, first + ROWS) of one slab, with zeros beyond rows and depth. WIDE: every row
// starts on 16 bytes and holds whole chunks, so the copy needs no registers and no waiting.
template <int ROWS, int THREADS, bool WIDE, typename Element>
__device__ void fetch(std::uint32_t stage, const Rows& from, index_t first, int slab) {
    constexpr int elements = chunk_bytes / sizeof(Element);
    static_assert(ROWS * chunks % THREADS == 0);
#pragma unroll
    for (int i = 0; i < ROWS * chunks / THREADS; ++i) {
        const int index = i * THREADS + static_cast<int>(threadIdx.x);
        const int row = index / chunks, chunk = index % chunks;
        const int k = slab * slab_bytes + chunk * chunk_bytes;
        const bool inside = first + row < from.rows && k < from.depth;
        const std::uint8_t* source =
            inside ? from.data + (first + row) * from.stride + k : from.data;
        const std::uint32_t target = stage + chunk_at(row, chunk);
        if constexpr (WIDE) {
            ptx::copy_async(target, source, inside);
        } else {
            const int left = inside ? (from.depth - k) / static_cast<int>(sizeof(Element)) : 0;
            uint4 chunk_of_row;
            auto* element = reinterpret_cast<Element*>(&chunk_of_row);
#pragma unroll
            for (int e = 0; e < elements; ++e) {
                element[e] = e < left ? reinterpret_cast<const Element*>(source)[e] : Element{0};
            }
            ptx::store_shared(target, chunk_of_row);
        }
    }
}

template <int BM, int BN>
struct Shape {
    static constexpr int a_bytes = BM * slab_bytes;
    static constexpr int stage_bytes = (BM + BN) * slab_bytes;
    static constexpr int shared_bytes = stages * stage_bytes;
    static_assert(BM * BN * 4 <= shared_bytes, "accumulators are staged where the slabs were");
};

// BM x BN of the output per block, WM x WN of it per warp.
template <DType D, int BM, int BN, int WM, int WN, bool WIDE>
__global__ void __launch_bounds__(32 * (BM / WM) * (BN / WN), WIDE ? 2 : 1)
    gemm_mma_kernel(Rows x, Rows weight, TileOrder order, Epilogue epilogue) {
    using Accumulator = typename Operands<D>::Accumulator;
    using Element = typename Operands<D>::Element;
    using Sizes = Shape<BM, BN>;
    constexpr int threads = 32 * (BM / WM) * (BN / WN);
    const std::uint32_t shared = ptx::shared_address(ptx::dynamic_shared());

    const TileOrder::Place tile = order.at(static_cast<int>(blockIdx.x));
    const index_t first_row = static_cast<index_t>(tile.m) * BM;
    const index_t first_column = static_cast<index_t>(tile.n) * BN;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warp_row = warp / (BN / WN) * WM, warp_column = warp % (BN / WN) * WN;

    const int slabs = (x.depth + slab_bytes - 1) / slab_bytes;
    const auto start_slab = [&](int slab) {
        if (slab < slabs) {
            const std::uint32_t stage =
                shared + static_cast<std::uint32_t>(slab % stages) * Sizes::stage_bytes;
            fetch<BM, threads, WIDE, Element>(stage, x, first_row, slab);
            fetch<BN, threads, WIDE, Element>(stage + Sizes::a_bytes, weight, first_column, slab);
        }
        // An empty group keeps the count of groups equal to that of slabs.
        ptx::copy_async_commit();
    };
    for (int slab = 0; slab < stages - 1; ++slab) start_slab(slab);

    // Where this lane's row of each 8 x 16-byte matrix lies: the first two matrices of A are rows,
    // the first two of B halves of the step.
    const int row = lane % 8, low = lane / 8 % 2, high = lane / 16;
    Accumulator sums[WM / 16][WN / 8][4] = {};
#pragma unroll 1
    for (int slab = 0; slab < slabs; ++slab) {
        // This slab has landed for every thread, and nobody reads the one before any more.
        ptx::copy_async_wait<stages - 2>();
        __syncthreads();
        start_slab(slab + stages - 1);
        const std::uint32_t a_stage =
            shared + static_cast<std::uint32_t>(slab % stages) * Sizes::stage_bytes;
        const std::uint32_t b_stage = a_stage + Sizes::a_bytes;
#pragma unroll
        for (int step = 0; step < slab_bytes / step_bytes; ++step) {
            std::uint32_t a[WM / 16][4], b[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; ++i) {
                const int at = warp_row + 16 * i + 8 * low + row;
                ptx::load_matrices(a[i], a_stage + chunk_at(at, 2 * step + high));
            }
#pragma unroll
            for (int j = 0; j < WN / 16; ++j) {
                const int at = warp_column + 16 * j + 8 * high + row;
                ptx::load_matrices(b[j], b_stage + chunk_at(at, 2 * step + low));
            }
#pragma unroll
            for (int i = 0; i < WM / 16; ++i) {
#pragma unroll
                for (int j = 0; j < WN / 8; ++j) {
                    const std::uint32_t* half = b[j / 2] + j % 2 * 2;
                    Operands<D>::multiply(sums[i][j], a[i], half[0], half[1]);
                }
            }
        }
    }

    __syncthreads();
    auto* staged = reinterpret_cast<Accumulator*>(ptx::dynamic_shared());
#pragma unroll
    for (int i = 0; i < WM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) {
            const int at = warp_row + 16 * i + lane / 4,
                      column = warp_column + 8 * j + lane % 4 * 2;
            stage_pair<BN>(staged, at, column, sums[i][j][0], sums[i][j][1]);
            stage_pair<BN>(staged, at + 8, column, sums[i][j][2], sums[i][j][3]);
        }
    }
    __syncthreads();
    Finish<D, BM, BN, threads> finish{epilogue, static_cast<int>(threadIdx.x)};
    finish.prepare_columns(first_column);
    finish.prepare_row(first_row);
    finish.run(staged);
}

template <DType D, int BM, int BN, int WM, int WN>
void run(const Gemm& args, const TileOrder& order, void* stream) {
    constexpr int threads = 32 * (BM / WM) * (BN / WN);
    const index_t bytes = size_of(args.dtype);
    const int depth = static_cast<int>(args.depth * bytes);
    const Rows x{static_cast<const std::uint8_t*>(args.x), args.x_stride * bytes, args.rows, depth};
    const Rows weight{static_cast<const std::uint8_t*>(args.weight), args.weight_stride * bytes,
                      args.width, depth};
    const bool wide = rows_aligned(args.x, args.x_stride, args.depth, args.dtype) &&
                      rows_aligned(args.weight, args.weight_stride, args.depth, args.dtype);
    const dim3 grid(static_cast<unsigned>(order.tiles_m) * order.tiles_n);
    const auto kernel =
        wide ? gemm_mma_kernel<D, BM, BN, WM, WN, true> : gemm_mma_kernel<D, BM, BN, WM, WN, false>;
    start_shared(kernel, grid, threads, Shape<BM, BN>::shared_bytes, stream, x, weight, order,
                 args.epilogue);
}

template <DType D>
void run_tile(const Gemm& args, const GemmConfig& config, void* stream) {
    const TileOrder order{config.tiles_m, config.tiles_n};
    if (config.choice == 0) {
        run<D, 128, 128, 64, 32>(args, order, stream);
    } else {
        run<D, 64, 64, 32, 32>(args, order, stream);
    }
}

}  // namespace

void gemm_mma(const Gemm& args, const GemmConfig& config, void* stream) {
    switch (args.dtype) {
        case DType::bf16:
            return run_tile<DType::bf16>(args, config, stream);
        case DType::f16:
            return run_tile<DType::f16>(args, config, stream);
        default:
            return run_tile<DType::u8>(args, config, stream);
    }
}

}  // namespace fastbert::cuda
