// The epilogue of every product: accumulators staged in shared memory in, finished rows out.
//
// Accumulators lie scattered over a warp's registers in an order that belongs to the instruction.
// They are written to shared memory as they are (4 bytes an element) and read back eight columns of
// one row at a time; so the arithmetic below exists once for all families, column parameters stay
// in registers, and residual and output move 16 bytes a thread, whole sectors at a time.
#pragma once

#include <type_traits>

#include "cuda/activation.cuh"
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

// Eight elements of a row, packed as they are in memory; zeros past `available`.
template <DType D>
struct RawPiece {
    using Type = typename Element<D>::type;
    static constexpr int count = RowPart<D>::piece;  // in 16 bytes
    uint4 words[piece_columns / count];

    __device__ void load(bool wide, const void* base, index_t offset, index_t available) {
        const auto* p = static_cast<const Type*>(base) + offset;
#pragma unroll
        for (int w = 0; w < piece_columns / count; ++w) {
            uint4 raw = {0, 0, 0, 0};
            if (wide) {
                // All or nothing: aligned rows hold whole pieces.
                if (w * count < available) raw = *reinterpret_cast<const uint4*>(p + w * count);
            } else {
                auto* element = reinterpret_cast<Type*>(&raw);
#pragma unroll
                for (int i = 0; i < count; ++i) {
                    if (w * count + i < available) element[i] = p[w * count + i];
                }
            }
            words[w] = raw;
        }
    }
    __device__ float at(int i) const {
        return Element<D>::widen(reinterpret_cast<const Type*>(words)[i]);
    }
};

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

// What the columns and the first row of a thread's share need, loaded ahead of their use: between
// the two lie the staging of accumulators and a barrier.
template <bool INTEGER>
struct Parameters {
    float bias[piece_columns];
    float column_scale[INTEGER ? piece_columns : 1];
    int minus_column_sums[INTEGER ? piece_columns : 1];
    float row_scale;
    int row_zero_point;

    __device__ void load_columns(const Epilogue& epilogue, index_t column) {
        const index_t available = epilogue.width - column;
        if (epilogue.bias == nullptr) {
#pragma unroll
            for (float& b : bias) b = 0.0f;
        } else if (epilogue.dtype == DType::bf16) {
            load_bias<DType::bf16>(epilogue, column, available);
        } else if (epilogue.dtype == DType::f16) {
            load_bias<DType::f16>(epilogue, column, available);
        } else {
            load_bias<DType::f32>(epilogue, column, available);
        }
        if constexpr (INTEGER) {
            // Four bytes an element, whatever they mean.
            RawPiece<DType::f32> scale, sums;
            scale.load(epilogue.wide, epilogue.column_scale, column, available);
            sums.load(epilogue.wide, epilogue.column_sums, column, available);
#pragma unroll
            for (int i = 0; i < piece_columns; ++i) {
                column_scale[i] = scale.at(i);
                minus_column_sums[i] = -reinterpret_cast<const int*>(sums.words)[i];
            }
        }
    }
    __device__ void load_row(const Epilogue& epilogue, index_t row) {
        if constexpr (INTEGER) {
            if (row >= epilogue.rows) return;
            row_scale = epilogue.row_scale[row];
            row_zero_point = epilogue.row_zero_point[row];
        }
    }

  private:
    template <DType D>
    __device__ void load_bias(const Epilogue& epilogue, index_t column, index_t available) {
        RawPiece<D> raw;
        raw.load(epilogue.wide, epilogue.bias, column, available);
#pragma unroll
        for (int i = 0; i < piece_columns; ++i) bias[i] = raw.at(i);
    }
};

// Finishes ROWS x COLUMNS staged elements, of which the first is element (first_row, first_column)
// of the output, by THREADS threads that count from 0. OPERANDS is the dtype of what was
// multiplied.
template <DType OPERANDS, int ROWS, int COLUMNS, int THREADS>
struct Finish {
    static constexpr bool integer = OPERANDS == DType::u8;
    using Accumulator = std::conditional_t<integer, int, float>;
    static constexpr int pieces = COLUMNS / piece_columns;
    static constexpr int row_step = THREADS / pieces;
    static_assert(THREADS % pieces == 0 && ROWS % row_step == 0);
    // Then a thread's rows have one pattern of exchanged groups (staged_at).
    static_assert(row_step % 4 == 0);

    const Epilogue& epilogue;
    int thread;
    index_t first_row, first_column;
    Parameters<integer> parameters;

    // Before the accumulators are staged; the columns once for all rows that follow.
    __device__ void prepare_columns(index_t first) {
        first_column = first;
        parameters.load_columns(epilogue, first_column + column());
    }
    __device__ void prepare_row(index_t first) {
        first_row = first;
        parameters.load_row(epilogue, first_row + thread / pieces);
    }

    // Behind a barrier.
    __device__ void run(const Accumulator* staged) {
        if constexpr (!integer) {
            run_as<OPERANDS>(staged);
        } else if (epilogue.dtype == DType::bf16) {
            run_as<DType::bf16>(staged);
        } else if (epilogue.dtype == DType::f16) {
            run_as<DType::f16>(staged);
        } else {
            run_as<DType::f32>(staged);
        }
    }

  private:
    __device__ int column() const { return thread % pieces * piece_columns; }

    template <DType D>
    __device__ void run_as(const Accumulator* staged) {
        const index_t out_column = first_column + column();
        const index_t available = epilogue.width - out_column;
        if (available <= 0) return;
        RawPiece<D> residual;
        load_residual(residual, first_row + thread / pieces, out_column, available);
        const int own_row = thread / pieces;
        const Accumulator* halves[2] = {staged + staged_at<COLUMNS>(own_row, column()),
                                        staged + staged_at<COLUMNS>(own_row, column() + 4)};
#pragma unroll 1
        for (int row = own_row; row < ROWS; row += row_step) {
            const index_t out_row = first_row + row;
            if (out_row >= epilogue.rows) return;
            Accumulator sums[piece_columns];
            read_quads(halves, sums);
            halves[0] += row_step * COLUMNS;
            halves[1] += row_step * COLUMNS;
            float value[piece_columns];
            dequantise(sums, value);
            const RawPiece<D> own_residual = residual;
            // A round ahead: memory is far, and one warp of a scheduler works here at a time.
            parameters.load_row(epilogue, out_row + row_step);
            load_residual(residual, out_row + row_step, out_column, available);
            activate<D>(value, epilogue.activation, epilogue.activation_params);
            if (epilogue.residual != nullptr) {
#pragma unroll
                for (int i = 0; i < piece_columns; ++i) value[i] += own_residual.at(i);
            }
            const index_t offset = out_row * epilogue.out_stride + out_column;
            if constexpr (integer) {
                if (epilogue.out_scale != nullptr) {
                    store_bytes(epilogue.wide, epilogue.out, offset, available, value,
                                epilogue.out_scale[out_row], epilogue.out_zero_point[out_row]);
                    continue;
                }
            }
            store_piece<D>(epilogue.wide, epilogue.out, offset, available, value);
        }
    }

    static __device__ void read_quads(const Accumulator* const (&halves)[2],
                                      Accumulator (&sums)[piece_columns]) {
        using Quad = std::conditional_t<integer, int4, float4>;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Quad quad = *reinterpret_cast<const Quad*>(halves[half]);
            sums[4 * half] = quad.x;
            sums[4 * half + 1] = quad.y;
            sums[4 * half + 2] = quad.z;
            sums[4 * half + 3] = quad.w;
        }
    }

    __device__ void dequantise(const Accumulator (&sums)[piece_columns],
                               float (&value)[piece_columns]) const {
#pragma unroll
        for (int i = 0; i < piece_columns; ++i) {
            if constexpr (integer) {
                // Nothing here leaves int32: |q - zero_point| <= 255.
                const int exact =
                    sums[i] + parameters.row_zero_point * parameters.minus_column_sums[i];
                value[i] =
                    fmaf(static_cast<float>(exact),
                         parameters.row_scale * parameters.column_scale[i], parameters.bias[i]);
            } else {
                value[i] = sums[i] + parameters.bias[i];
            }
        }
    }

    template <DType D>
    __device__ void load_residual(RawPiece<D>& residual, index_t row, index_t column,
                                  index_t available) const {
        if (epilogue.residual == nullptr || row >= epilogue.rows) return;
        residual.load(epilogue.wide, epilogue.residual, row * epilogue.residual_stride + column,
                      available);
    }
};

}  // namespace fastbert::cuda
