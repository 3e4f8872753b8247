// What happens to a tile of sums while it is still in L1: scales, bias, activation, residual,
// rounding to the output type, running range of the rows. One output vector at a time, columns
// outside and rows inside, so that what belongs to a column is loaded once.
#pragma once

#include <cstdint>

#include "cpu/ops/gemm.h"
#include "cpu/vec/dot.h"

namespace fastbert {
namespace {

struct TileSums {
    const std::uint8_t* sums;  // first row, first column of the panel
    index_t stride;            // bytes from row to row
    index_t row;               // of the output
    int rows;
    index_t column;  // first column of the panel
};

template <bool partial>
inline F32 load_as(const void* p, DType dtype, index_t offset, int n) {
    const auto get = [&](const auto* base) {
        return partial ? load_n(base + offset, n) : load(base + offset);
    };
    switch (dtype) {
        case DType::bf16:
            return get(static_cast<const bf16_t*>(p));
        case DType::f16:
            return get(static_cast<const f16_t*>(p));
        default:
            return get(static_cast<const float*>(p));
    }
}

template <bool partial>
inline void store_as(void* p, DType dtype, index_t offset, F32 a, int n) {
    const auto put = [&](auto* base) {
        partial ? store_n(base + offset, a, n) : store(base + offset, a);
    };
    switch (dtype) {
        case DType::bf16:
            return put(static_cast<bf16_t*>(p));
        case DType::f16:
            return put(static_cast<f16_t*>(p));
        default:
            return put(static_cast<float*>(p));
    }
}

// One vector of columns, all rows of the tile. `vector` counts from the panel's first column.
template <Activation activation, bool integer, bool partial>
inline void finish_vector(const GemmArgs& g, const std::int32_t* column_sums, const TileSums& t,
                          int vector, int n) {
    const index_t column = t.column + vector * F32::lanes;
    const F32 bias = g.bias != nullptr ? load_as<partial>(g.bias, g.bias_dtype, column, n) : zero();
    F32 w_scale = zero();
    I32 column_sum = set1_i32(0);
    if constexpr (integer) {
        w_scale = partial ? load_n(g.w_scale + column, n) : load(g.w_scale + column);
        column_sum = load(column_sums + column);  // padded to whole panels
    }
    for (int i = 0; i < t.rows; ++i) {
        const index_t row = t.row + i;
        const std::uint8_t* p = t.sums + i * t.stride + vector * F32::lanes * 4;
        F32 y;
        if constexpr (integer) {
            // sum (q - z) w = sum q w - z sum w: both int32, both below 2^31 (kMaxInt8K).
            const I32 offset = mul(set1_i32(g.x_zero_point[row]), column_sum);
            const I32 centred = sub(load(reinterpret_cast<const std::int32_t*>(p)), offset);
            y = fma(to_f32(centred), mul(set1(g.x_scale[row]), w_scale), bias);
        } else {
            y = add(load(reinterpret_cast<const float*>(p)), bias);
        }
        y = apply<activation>(y);
        if (g.residual != nullptr) {
            y = add(y, load_as<partial>(g.residual, g.residual_dtype,
                                        row * g.residual_stride + column, n));
        }
        store_as<partial>(g.out, g.out_dtype, row * g.out_stride + column, y, n);
        if (g.range != nullptr) {
            // Lanes past n hold the activation of a padding column, which is not of this row.
            float* range = g.range + row * 2 * kRangeLanes;
            if constexpr (partial) {
                store_n(range, min(y, load(range)), n);
                store_n(range + kRangeLanes, max(y, load(range + kRangeLanes)), n);
            } else {
                store(range, min(y, load(range)));
                store(range + kRangeLanes, max(y, load(range + kRangeLanes)));
            }
        }
    }
}

template <Activation activation, bool integer>
inline void finish_columns(const GemmArgs& g, const std::int32_t* column_sums, const TileSums& t,
                           int columns) {
    const index_t left = g.n - t.column;
    const int valid = left < columns ? static_cast<int>(left) : columns;
    int vector = 0;
    for (; (vector + 1) * F32::lanes <= valid; ++vector) {
        finish_vector<activation, integer, false>(g, column_sums, t, vector, F32::lanes);
    }
    const int rest = valid - vector * F32::lanes;
    if (rest > 0) finish_vector<activation, integer, true>(g, column_sums, t, vector, rest);
}

template <bool integer>
inline void finish_tile(const GemmArgs& g, const std::int32_t* column_sums, const TileSums& t,
                        int columns) {
    switch (g.activation) {
        case Activation::none:
            return finish_columns<Activation::none, integer>(g, column_sums, t, columns);
        case Activation::gelu:
            return finish_columns<Activation::gelu, integer>(g, column_sums, t, columns);
        case Activation::gelu_tanh:
            return finish_columns<Activation::gelu_tanh, integer>(g, column_sums, t, columns);
        case Activation::relu:
            return finish_columns<Activation::relu, integer>(g, column_sums, t, columns);
        case Activation::silu:
            return finish_columns<Activation::silu, integer>(g, column_sums, t, columns);
        case Activation::tanh:
            return finish_columns<Activation::tanh, integer>(g, column_sums, t, columns);
    }
}

}  // namespace
}  // namespace fastbert
