// The epilogue of every product: accumulators staged in shared memory in, finished rows out.
//
// Accumulators lie scattered over a warp's registers in an order that belongs to the instruction.
// They are written to shared memory as they are (4 bytes an element) and read back eight columns of
// one row at a time; so the arithmetic below exists once for all families, column parameters stay
// in registers, and residual and output move 16 bytes a thread, whole sectors at a time.
#pragma once

#include <type_traits>

#include "cuda/gemm/gemm.h"
#include "cuda/ptx.cuh"
#include "cuda/row.cuh"

namespace fastbert::cuda {

constexpr int piece_columns = 8;  // of a row that one thread finishes at a time

// Where element (row, column) of a staged piece lies, in words. Groups of four words are exchanged
// so that neither side meets a bank conflict: a half-warp writes 8 bytes a lane to four rows, a
// quarter-warp reads 16 bytes a lane from one.
template <int COLUMNS>
__device__ int staged_at(int row, int column) {
    static_assert(COLUMNS % 64 == 0);
    const int group = column / 4;
    return row * COLUMNS + (group ^ ((row & 3) << 1) ^ ((group >> 3) & 1)) * 4 + column % 4;
}

// Two neighbours of a row; column is even.
template <int COLUMNS, typename Accumulator>
__device__ void stage_pair(Accumulator* staged, int row, int column, Accumulator a, Accumulator b) {
    using Pair = std::conditional_t<std::is_same_v<Accumulator, int>, int2, float2>;
    *reinterpret_cast<Pair*>(staged + staged_at<COLUMNS>(row, column)) = Pair{a, b};
}

template <int COLUMNS, typename Accumulator>
__device__ void read_piece(const Accumulator* staged, int row, int column,
                           Accumulator (&out)[piece_columns]) {
    using Quad = std::conditional_t<std::is_same_v<Accumulator, int>, int4, float4>;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Quad quad =
            *reinterpret_cast<const Quad*>(staged + staged_at<COLUMNS>(row, column + 4 * half));
        out[4 * half] = quad.x;
        out[4 * half + 1] = quad.y;
        out[4 * half + 2] = quad.z;
        out[4 * half + 3] = quad.w;
    }
}

// x * Phi(x) for results that are rounded to 16 bits anyway: Phi(-a) = 2^p(a) with p a polynomial
// of degree 8 fitted to log2 Phi on [0, 9] (Chebyshev basis, reweighted to equal ripples). In
// float32 its error is at most 1.3e-5 of the value for x >= -9, and 1.1e-6 absolute everywhere; it
// takes one polynomial and one exponential where erff takes two polynomials and one exponential.
__device__ inline float gelu16(float x) {
    // Phi(-9) = 1e-19: what lies beyond does not show in 16 bits.
    const float a = fminf(fabsf(x), 9.0f);
    float p = 7.4632609e-8f;
    p = fmaf(p, a, -3.6557790e-6f);
    p = fmaf(p, a, 7.9437683e-5f);
    p = fmaf(p, a, -1.0200500e-3f);
    p = fmaf(p, a, 8.7508783e-3f);
    p = fmaf(p, a, -5.4304697e-2f);
    p = fmaf(p, a, -4.5824146e-1f);
    p = fmaf(p, a, -1.1512951f);
    p = fmaf(p, a, -0.99999660f);
    const float tail = ptx::exp2_approximate(p);
    return x * (x > 0.0f ? 1.0f - tail : tail);
}

template <DType D>
__device__ void activate_piece(float (&value)[piece_columns], Activation activation) {
    if (D != DType::f32 && activation == Activation::gelu) {
#pragma unroll
        for (float& x : value) x = gelu16(x);
    } else if (activation != Activation::none) {
#pragma unroll
        for (float& x : value) x = activate(x, activation);
    }
}

template <DType D>
__device__ void load_piece(bool wide, const void* base, index_t offset, index_t available,
                           float (&out)[piece_columns]) {
    constexpr int count = RowPart<D>::piece;
#pragma unroll
    for (int first = 0; first < piece_columns; first += count) {
        float (&part)[count] = *reinterpret_cast<float (*)[count]>(out + first);
        if (wide) {
            load<D, true>(base, offset + first, available - first, part);
        } else {
            load<D, false>(base, offset + first, available - first, part);
        }
    }
}

template <DType D>
__device__ void store_piece(bool wide, void* base, index_t offset, index_t available,
                            const float (&value)[piece_columns]) {
    constexpr int count = RowPart<D>::piece;
#pragma unroll
    for (int first = 0; first < piece_columns; first += count) {
        const float (&part)[count] = *reinterpret_cast<const float (*)[count]>(value + first);
        if (wide) {
            store<D, true>(base, offset + first, available - first, part);
        } else {
            store<D, false>(base, offset + first, available - first, part);
        }
    }
}

// clamp(round(value / scale) + zero_point, 0, 255), as quantize_rows does it.
__device__ inline void store_bytes(bool wide, void* base, index_t offset, index_t available,
                                   const float (&value)[piece_columns], float scale,
                                   int zero_point) {
    union {
        uint2 all;
        std::uint8_t byte[piece_columns];
    } piece;
#pragma unroll
    for (int i = 0; i < piece_columns; ++i) {
        float step = __fdiv_rn(value[i], scale);
        step = isfinite(step) ? rintf(step) : 0.0f;
        step += static_cast<float>(zero_point);
        piece.byte[i] = static_cast<std::uint8_t>(fminf(fmaxf(step, 0.0f), 255.0f));
    }
    auto* p = static_cast<std::uint8_t*>(base) + offset;
    if (wide && available >= piece_columns) {
        *reinterpret_cast<uint2*>(p) = piece.all;
    } else {
#pragma unroll
        for (int i = 0; i < piece_columns; ++i) {
            if (i < available) p[i] = piece.byte[i];
        }
    }
}

// Finishes ROWS x COLUMNS staged elements, of which the first is element (first_row, first_column)
// of the output, by THREADS threads that count from 0.
template <DType D, int ROWS, int COLUMNS, int THREADS, typename Accumulator>
__device__ void finish_as(const Epilogue& epilogue, const Accumulator* staged, int thread,
                          index_t first_row, index_t first_column) {
    constexpr int pieces = COLUMNS / piece_columns;
    static_assert(THREADS % pieces == 0 && ROWS % (THREADS / pieces) == 0);
    const int column = thread % pieces * piece_columns;
    const index_t out_column = first_column + column;
    const index_t available = epilogue.width - out_column;
    if (available <= 0) return;
    float bias[piece_columns] = {};
    if (epilogue.bias != nullptr) {
        load_piece<D>(epilogue.wide, epilogue.bias, out_column, available, bias);
    }
    [[maybe_unused]] float column_scale[piece_columns];
    [[maybe_unused]] int column_sums[piece_columns];
    if constexpr (std::is_same_v<Accumulator, int>) {
#pragma unroll
        for (int i = 0; i < piece_columns; ++i) {
            const bool inside = i < available;
            column_scale[i] = inside ? epilogue.column_scale[out_column + i] : 0.0f;
            column_sums[i] = inside ? epilogue.column_sums[out_column + i] : 0;
        }
    }
    for (int row = thread / pieces; row < ROWS; row += THREADS / pieces) {
        const index_t out_row = first_row + row;
        if (out_row >= epilogue.rows) return;
        Accumulator sums[piece_columns];
        read_piece<COLUMNS>(staged, row, column, sums);
        float value[piece_columns];
        if constexpr (std::is_same_v<Accumulator, int>) {
            const float scale = epilogue.row_scale[out_row];
            const int zero_point = epilogue.row_zero_point[out_row];
#pragma unroll
            for (int i = 0; i < piece_columns; ++i) {
                // Nothing here leaves int32: |q - zero_point| <= 255.
                const int exact = sums[i] - zero_point * column_sums[i];
                value[i] = fmaf(static_cast<float>(exact), scale * column_scale[i], bias[i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < piece_columns; ++i) value[i] = sums[i] + bias[i];
        }
        activate_piece<D>(value, epilogue.activation);
        if (epilogue.residual != nullptr) {
            float residual[piece_columns];
            load_piece<D>(epilogue.wide, epilogue.residual,
                          out_row * epilogue.residual_stride + out_column, available, residual);
#pragma unroll
            for (int i = 0; i < piece_columns; ++i) value[i] += residual[i];
        }
        const index_t offset = out_row * epilogue.out_stride + out_column;
        if constexpr (std::is_same_v<Accumulator, int>) {
            if (epilogue.out_scale != nullptr) {
                store_bytes(epilogue.wide, epilogue.out, offset, available, value,
                            epilogue.out_scale[out_row], epilogue.out_zero_point[out_row]);
                continue;
            }
        }
        store_piece<D>(epilogue.wide, epilogue.out, offset, available, value);
    }
}

// D is the dtype of the operands; behind 8-bit operands any output may stand.
template <DType D, int ROWS, int COLUMNS, int THREADS, typename Accumulator>
__device__ void finish(const Epilogue& epilogue, const Accumulator* staged, int thread,
                       index_t first_row, index_t first_column) {
    const auto as = [&](auto dtype) {
        finish_as<dtype.value, ROWS, COLUMNS, THREADS>(epilogue, staged, thread, first_row,
                                                       first_column);
    };
    if constexpr (D != DType::u8) {
        as(std::integral_constant<DType, D>{});
    } else if (epilogue.dtype == DType::bf16) {
        as(std::integral_constant<DType, DType::bf16>{});
    } else if (epilogue.dtype == DType::f16) {
        as(std::integral_constant<DType, DType::f16>{});
    } else {
        as(std::integral_constant<DType, DType::f32>{});
    }
}

}  // namespace fastbert::cuda
