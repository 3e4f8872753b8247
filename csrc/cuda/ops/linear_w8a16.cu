// Two forms: 16-bit rows on mma.sync, float32 rows on the ordinary units. Both read a row of the
// weight in pieces of 16 bytes, 16 positions of the sum, and depend on K alone in how they share
// those among threads; so a row's results are the same with any others, and zeros fill the last.
#include <string>

#include "common/check.h"
#include "cuda/activation.cuh"
#include "cuda/decoding/decoding.h"
#include "cuda/ptx.cuh"
#include "cuda/row.cuh"

namespace fastbert::cuda {

namespace {

constexpr int threads = 256;
constexpr int warps = threads / 32;
constexpr int positions = 16;  // of the sum, in 16 bytes of the weight

// `positions` weights of a row from k on as four words, zeros past `available`.
template <bool WIDE>
__device__ uint4 load_weights(const std::int8_t* from, index_t available) {
    uint4 words = make_uint4(0, 0, 0, 0);
    if constexpr (WIDE) {
        if (available > 0) words = *reinterpret_cast<const uint4*>(from);
    } else {
        auto* byte = reinterpret_cast<std::int8_t*>(&words);
#pragma unroll
        for (int i = 0; i < positions; ++i) {
            if (i < available) byte[i] = from[i];
        }
    }
    return words;
}

// Weight i of a word: its bits become the last of 2^23 + 128 + weight, all of them exact.
__device__ float weight_of(std::uint32_t word, int i) {
    const std::uint32_t bits = __byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7440u + i);
    return __int_as_float(static_cast<int>(bits)) - 8388736.0f;
}

// What is left to do of the sum of one result.
template <DType D>
__device__ void finish(const LinearW8A16& args, index_t row, index_t column, float sum) {
    using E = Element<D>;
    using Type = typename E::type;
    // Overflows too, as where other kernels add integers: a row is finite or it says so.
    float value[1] = {isfinite(sum) ? sum * args.scale[column] : __int_as_float(0x7fffffff)};
    if (args.bias != nullptr) value[0] += E::widen(static_cast<const Type*>(args.bias)[column]);
    activate<D>(value, args.activation, args.activation_params);
    if (args.residual != nullptr) {
        value[0] +=
            E::widen(static_cast<const Type*>(args.residual)[row * args.residual_stride + column]);
    }
    static_cast<Type*>(args.out)[row * args.out_stride + column] = E::narrow(value[0]);
}

// Eight pairs of a 16-bit row, zeros past `available`.
template <bool WIDE>
__device__ void load_pairs(const std::uint16_t* from, index_t available, std::uint32_t (&pair)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) pair[i] = 0;
    if constexpr (WIDE) {
        if (available > 0) {
            const uint4 low = reinterpret_cast<const uint4*>(from)[0];
            const uint4 high = reinterpret_cast<const uint4*>(from)[1];
            const std::uint32_t words[8] = {low.x,  low.y,  low.z,  low.w,
                                            high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) pair[i] = words[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < positions; ++i) {
            if (i < available) pair[i / 2] |= static_cast<std::uint32_t>(from[i]) << 16 * (i % 2);
        }
    }
}

// A block takes 16 rows of the weight and 8 * TILES rows of x. Its warps take the sum's positions
// in turns of 64, and a lane 16 of those: of two rows of the weight, and of one row of each tile.
// What a lane holds are the places of a product that are its own; which position of the sum each of
// them is does not matter, as long as it is the same for both operands.
template <DType D, int TILES, bool WIDE>
__global__ void __launch_bounds__(threads) linear_w8a16_mma_kernel(LinearW8A16 args) {
    constexpr int columns = 16, rows = 8 * TILES, turn = 4 * positions;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const index_t first_column = static_cast<index_t>(blockIdx.x) * columns;
    const index_t first_row = static_cast<index_t>(blockIdx.y) * rows;
    const index_t column[2] = {first_column + lane / 4, first_column + lane / 4 + 8};

    float sums[TILES][4] = {};
#pragma unroll 2
    for (index_t k = warp * turn + lane % 4 * positions; k - lane % 4 * positions < args.depth;
         k += warps * turn) {
        const index_t left = args.depth - k;
        std::uint32_t weight[2][8];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const bool exists = column[half] < args.width;
            const uint4 words = load_weights<WIDE>(
                args.weight + (exists ? column[half] : 0) * args.weight_stride + k,
                exists ? left : 0);
            const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                weight[half][i] = ptx::pack<D>(weight_of(word[i / 2], i % 2 * 2),
                                               weight_of(word[i / 2], i % 2 * 2 + 1));
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const index_t row = first_row + 8 * tile + lane / 4;
            const bool exists = row < args.rows;
            std::uint32_t x[8];
            load_pairs<WIDE>(
                static_cast<const std::uint16_t*>(args.x) + (exists ? row : 0) * args.x_stride + k,
                exists ? left : 0, x);
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                const std::uint32_t a[4] = {weight[0][i], weight[1][i], weight[0][i + 1],
                                            weight[1][i + 1]};
                ptx::multiply_16x8x16<D>(sums[tile], a, x[i], x[i + 1]);
            }
        }
    }

    // [warp][row][column]
    auto* const parts = reinterpret_cast<float*>(ptx::dynamic_shared());
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = 8 * tile + lane % 4 * 2 + i % 2, at = lane / 4 + i / 2 * 8;
            parts[(warp * rows + row) * columns + at] = sums[tile][i];
        }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += threads) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < warps; ++w) sum += parts[w * rows * columns + i];
        const index_t row = first_row + i / columns, at = first_column + i % columns;
        if (row < args.rows && at < args.width) finish<D>(args, row, at, sum);
    }
}

// A warp takes one row of the weight and eight rows of x, a lane 16 positions of the sum in turns.
template <DType OUT, bool WIDE>
__global__ void __launch_bounds__(threads) linear_w8a16_fma_kernel(LinearW8A16 args) {
    constexpr int rows = 8;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const index_t column = static_cast<index_t>(blockIdx.x) * warps + warp;
    const index_t first_row = static_cast<index_t>(blockIdx.y) * rows;
    const bool exists = column < args.width;
    float sums[rows] = {};
    for (index_t k = lane * positions; k < args.depth; k += 32 * positions) {
        const index_t left = args.depth - k;
        const uint4 words = load_weights<WIDE>(
            args.weight + (exists ? column : 0) * args.weight_stride + k, exists ? left : 0);
        const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int quad = 0; quad < 4; ++quad) {
            float weight[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) weight[i] = weight_of(word[quad], i);
#pragma unroll
            for (int r = 0; r < rows; ++r) {
                const index_t row = first_row + r;
                float x[4];
                load<DType::f32, WIDE>(args.x,
                                       (row < args.rows ? row : 0) * args.x_stride + k + 4 * quad,
                                       row < args.rows ? left - 4 * quad : 0, x);
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[r] = fmaf(weight[i], x[i], sums[r]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            sums[r] += __shfl_xor_sync(full_mask, sums[r], step);
        }
    }
    float mine = 0.0f;
#pragma unroll
    for (int r = 0; r < rows; ++r) mine = r == lane ? sums[r] : mine;
    if (lane < rows && first_row + lane < args.rows && exists) {
        finish<OUT>(args, first_row + lane, column, mine);
    }
}

template <DType D, int TILES>
void run(const LinearW8A16& args, bool wide, dim3 grid, void* stream) {
    constexpr int shared_bytes = 4 * warps * 8 * TILES * 16;
    const auto kernel =
        wide ? linear_w8a16_mma_kernel<D, TILES, true> : linear_w8a16_mma_kernel<D, TILES, false>;
    start_shared(kernel, grid, threads, shared_bytes, stream, args);
}

template <DType D>
void run_tiles(const LinearW8A16& args, const FewRowsConfig& config, bool wide, dim3 grid,
               void* stream) {
    if (config.rows == 8) {
        run<D, 1>(args, wide, grid, stream);
    } else {
        run<D, 4>(args, wide, grid, stream);
    }
}

}  // namespace

void linear_w8a16(const LinearW8A16& args, const Target& target) {
    const char* op = "linear_w8a16";
    check_float_dtype(op, "x", args.x_dtype);
    check_float_dtype(op, "out", args.dtype);
    if (args.x_dtype != DType::f32 && args.x_dtype != args.dtype) {
        fail(op, std::string("x is ") + name_of(args.x_dtype) + ", expected float32 or " +
                     name_of(args.dtype) + ", as the result.");
    }
    check_activation(op, args.activation, Activation::scaled_silu);
    check_size(op, "K", args.depth);
    const FewRowsConfig config = few_rows_config(op, args.rows, args.width, args.x_dtype);
    check_matrix(op, "x", args.x, args.rows, args.depth, args.x_stride);
    check_matrix(op, "qweight", args.weight, args.width, args.depth, args.weight_stride);
    check_matrix(op, "weight_scale", args.scale, 1, args.width, args.width);
    check_matrix(op, "out", args.out, args.rows, args.width, args.out_stride);
    if (args.residual != nullptr) {
        check_matrix(op, "residual", args.residual, args.rows, args.width, args.residual_stride);
    }
    if (args.rows == 0 || args.width == 0) return;
    const bool wide = rows_aligned(args.x, args.x_stride, args.depth, args.x_dtype) &&
                      rows_aligned(args.weight, args.weight_stride, args.depth, DType::s8);
    const Launch launch(op, target.device);
    const dim3 grid(config.blocks_x, config.blocks_y);
    if (args.x_dtype == DType::f32) {
        dispatch(args.dtype, wide, [&](auto dtype, auto is_wide) {
            start(linear_w8a16_fma_kernel<dtype.value, is_wide.value>, grid, threads, target.stream,
                  args);
        });
    } else if (args.dtype == DType::bf16) {
        run_tiles<DType::bf16>(args, config, wide, grid, target.stream);
    } else {
        run_tiles<DType::f16>(args, config, wide, grid, target.stream);
    }
    launch.check();
}

}  // namespace fastbert::cuda
