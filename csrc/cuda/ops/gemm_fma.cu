// float32 products, exact: fused multiply-adds on the ordinary units, no tf32. Slabs of K pass
// through two buffers in shared memory, transposed, so that a thread reads four rows at a time.
//
// Sums of 128 products each are added up, in ascending order of k in every tile. One chain over a K
// of 3072 has twice the error of a library that blocks K for its caches.
#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/families.h"
#include "cuda/ptx.cuh"

namespace fastbert::cuda {

namespace {

constexpr int depth = 16;   // of a slab
constexpr int chain = 128;  // products in one partial sum
constexpr int side = 16;    // threads along rows and along columns
constexpr int threads = side * side;
constexpr int quad = 4;

// A thread owns own x own results: quads of rows by quads of columns, a quarter of the block apart
// where there are two, which keeps a warp's reads free of bank conflicts.
template <int OWN>
struct Tile {
    static constexpr int size = side * OWN;
    static constexpr int quads = OWN / quad;
    static constexpr int stride = size + quad;  // of one k, in floats
    static constexpr int operand = depth * stride;
    static constexpr int loads = size * depth / quad / threads;  // per thread, operand and slab
    static constexpr int slabs_bytes = 2 * 2 * operand * 4;
    static constexpr int shared_bytes =
        slabs_bytes > size * size * 4 ? slabs_bytes : size * size * 4;
};

struct Matrix {
    const float* data;
    index_t stride;
    index_t rows;
};

template <int OWN, bool WIDE>
struct Slab {
    float value[Tile<OWN>::loads][quad];

    static __device__ int row(int i) { return (i * threads + static_cast<int>(threadIdx.x)) / 4; }
    static __device__ int k() { return static_cast<int>(threadIdx.x) % 4 * quad; }

    __device__ void load_from(const Matrix& from, index_t first, index_t start, index_t end) {
#pragma unroll
        for (int i = 0; i < Tile<OWN>::loads; ++i) {
            const index_t at = first + row(i);
            const index_t available = at < from.rows ? end - (start + k()) : 0;
            load<DType::f32, WIDE>(from.data, at * from.stride + start + k(), available, value[i]);
        }
    }
    __device__ void store_to(float* to) const {
#pragma unroll
        for (int i = 0; i < Tile<OWN>::loads; ++i) {
#pragma unroll
            for (int e = 0; e < quad; ++e) to[(k() + e) * Tile<OWN>::stride + row(i)] = value[i][e];
        }
    }
};

template <int OWN, bool WIDE>
__global__ void __launch_bounds__(threads)
    gemm_fma_kernel(Matrix x, Matrix weight, index_t end, TileOrder order, Epilogue epilogue) {
    using T = Tile<OWN>;
    auto* shared = reinterpret_cast<float*>(ptx::dynamic_shared());
    const TileOrder::Place tile = order.at(static_cast<int>(blockIdx.x));
    const index_t first_row = static_cast<index_t>(tile.m) * T::size;
    const index_t first_column = static_cast<index_t>(tile.n) * T::size;
    const int row = static_cast<int>(threadIdx.x) / side * quad;
    const int column = static_cast<int>(threadIdx.x) % side * quad;

    float sums[OWN][OWN] = {}, totals[OWN][OWN] = {};
    Slab<OWN, WIDE> a, b;
    a.load_from(x, first_row, 0, end);
    b.load_from(weight, first_column, 0, end);
    int buffer = 0;
    for (index_t start = 0; start < end; start += depth) {
        float* a_slab = shared + buffer * 2 * T::operand;
        float* b_slab = a_slab + T::operand;
        a.store_to(a_slab);
        b.store_to(b_slab);
        // One barrier a slab: the other buffer was read before the one of the round before.
        __syncthreads();
        a.load_from(x, first_row, start + depth, end);
        b.load_from(weight, first_column, start + depth, end);
#pragma unroll
        for (int k = 0; k < depth; ++k) {
            float4 rows[T::quads], columns[T::quads];
#pragma unroll
            for (int q = 0; q < T::quads; ++q) {
                const int at = k * T::stride + q * side * quad;
                rows[q] = *reinterpret_cast<const float4*>(a_slab + at + row);
                columns[q] = *reinterpret_cast<const float4*>(b_slab + at + column);
            }
            const auto* left = reinterpret_cast<const float*>(rows);
            const auto* right = reinterpret_cast<const float*>(columns);
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
#pragma unroll
                for (int j = 0; j < OWN; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
            }
        }
        buffer ^= 1;
        if ((start + depth) % chain == 0 || start + depth >= end) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
#pragma unroll
                for (int j = 0; j < OWN; ++j) {
                    totals[i][j] += sums[i][j];
                    sums[i][j] = 0.0f;
                }
            }
        }
    }

    __syncthreads();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int at = i / quad * side * quad + row + i % quad;
#pragma unroll
        for (int j = 0; j < OWN; j += 2) {
            const int in = j / quad * side * quad + column + j % quad;
            stage_pair<T::size>(shared, at, in, totals[i][j], totals[i][j + 1]);
        }
    }
    __syncthreads();
    Finish<DType::f32, T::size, T::size, threads> finish{epilogue, static_cast<int>(threadIdx.x)};
    finish.prepare_columns(first_column);
    finish.prepare_row(first_row);
    finish.run(shared);
}

template <int OWN>
void run(const Gemm& args, const GemmConfig& config, void* stream) {
    const Matrix x{static_cast<const float*>(args.x), args.x_stride, args.rows};
    const Matrix weight{static_cast<const float*>(args.weight), args.weight_stride, args.width};
    const bool wide = rows_aligned(args.x, args.x_stride, args.depth, DType::f32) &&
                      rows_aligned(args.weight, args.weight_stride, args.depth, DType::f32);
    const TileOrder order{config.tiles_m, config.tiles_n};
    const dim3 grid(static_cast<unsigned>(order.tiles_m) * order.tiles_n);
    const auto kernel = wide ? gemm_fma_kernel<OWN, true> : gemm_fma_kernel<OWN, false>;
    start_shared(kernel, grid, threads, Tile<OWN>::shared_bytes, stream, x, weight, args.depth,
                 order, args.epilogue);
}

}  // namespace

void gemm_fma(const Gemm& args, const GemmConfig& config, void* stream) {
    if (config.choice == 0) {
        run<8>(args, config, stream);
    } else {
        run<4>(args, config, stream);
    }
}

}  // namespace fastbert::cuda
