// What happens to a tile of sums while it is still in L1: scales, bias, activation, residual,
// rounding to the output type. One output vector at a time, columns
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

// One column of vectors of an operand, row after row. A known T makes a step of the loop over rows
// a few instructions; void looks at the dtype each time, None is an operand that is not there.
struct None {};

template <typename T, bool partial>
struct Column {
    T* at;
    index_t stride;
    int n;

    Column(void* base, DType, index_t offset, index_t stride, int n)
        : at(static_cast<T*>(base) + offset), stride(stride), n(n) {}
    F32 get() const { return partial ? load_n(at, n) : load(at); }
    void put(F32 a) const { partial ? store_n(at, a, n) : store(at, a); }
    void next() { at += stride; }
};

template <bool partial>
struct Column<void, partial> {
    void* base;
    DType dtype;
    index_t offset, stride;
    int n;

    Column(void* base, DType dtype, index_t offset, index_t stride, int n)
        : base(base), dtype(dtype), offset(offset), stride(stride), n(n) {}
    F32 get() const { return load_as<partial>(base, dtype, offset, n); }
    void put(F32 a) const { store_as<partial>(base, dtype, offset, a, n); }
    void next() { offset += stride; }
};

template <bool partial>
struct Column<None, partial> {
    Column(const void*, DType, index_t, index_t, int) {}
    void next() {}
};

template <typename T>
constexpr bool present = true;
template <>
constexpr bool present<None> = false;

// One vector of columns, all rows of the tile. `vector` counts from the panel's first column.
template <Activation activation, bool integer, bool partial, typename Residual, typename Out>
inline void finish_vector(const GemmArgs& g, const std::int32_t* column_sums, const TileSums& t,
                          int vector, int n) {
    const index_t column = t.column + vector * F32::lanes;
    const index_t at = column - g.bias_begin;
    const F32 bias = g.bias != nullptr ? load_as<partial>(g.bias, g.bias_dtype, at, n) : zero();
    F32 w_scale = zero();
    I32 column_sum = set1_i32(0);
    if constexpr (integer) {
        w_scale = partial ? load_n(g.w_scale + column, n) : load(g.w_scale + column);
        column_sum = load(column_sums + column);  // padded to whole panels
    }
    const std::uint8_t* sums = t.sums + vector * F32::lanes * 4;
    const index_t sums_stride = t.stride;
    const float* const x_scale = g.x_scale + t.row;
    const std::int32_t* const zero_point = g.x_zero_point + t.row;
    Column<Residual, partial> residual(const_cast<void*>(g.residual), g.residual_dtype,
                                       t.row * g.residual_stride + column, g.residual_stride, n);
    Column<Out, partial> out(g.out, g.out_dtype, t.row * g.out_stride + column, g.out_stride, n);
    const ActivationLanes params(g.activation_params);
    const int rows = t.rows;
    for (int i = 0; i < rows; ++i) {
        F32 y;
        if constexpr (integer) {
            // sum (q - z) w = sum q w - z sum w: both int32, both below 2^31 (kMaxInt8K).
            const I32 offset = mul(set1_i32(zero_point[i]), column_sum);
            const I32 centred = sub(load(reinterpret_cast<const std::int32_t*>(sums)), offset);
            y = fma(to_f32(centred), mul(set1(x_scale[i]), w_scale), bias);
        } else {
            y = add(load(reinterpret_cast<const float*>(sums)), bias);
        }
        y = apply<activation>(y, params);
        if constexpr (present<Residual>) y = add(y, residual.get());
        out.put(y);
        sums += sums_stride;
        residual.next();
        out.next();
    }
}

template <Activation activation, bool integer, typename Residual, typename Out>
inline void finish_columns(const GemmArgs& g, const std::int32_t* column_sums, const TileSums& t,
                           int columns) {
    const index_t left = g.n - t.column;
    const int valid = left < columns ? static_cast<int>(left) : columns;
    int vector = 0;
    for (; (vector + 1) * F32::lanes <= valid; ++vector) {
        finish_vector<activation, integer, false, Residual, Out>(g, column_sums, t, vector,
                                                                 F32::lanes);
    }
    const int rest = valid - vector * F32::lanes;
    if (rest > 0) {
        finish_vector<activation, integer, true, Residual, Out>(g, column_sums, t, vector, rest);
    }
}

// The types that layers are made of have code of their own, for the activations that most have.
template <Activation activation, bool integer>
inline void finish_columns(const GemmArgs& g, const std::int32_t* column_sums, const TileSums& t,
                           int columns) {
    if constexpr (activation == Activation::leaky_relu || activation == Activation::scaled_silu) {
        if (g.residual == nullptr) {
            return finish_columns<activation, integer, None, void>(g, column_sums, t, columns);
        }
        return finish_columns<activation, integer, void, void>(g, column_sums, t, columns);
    }
    if (g.residual == nullptr) {
        switch (g.out_dtype) {
            case DType::f32:
                return finish_columns<activation, integer, None, float>(g, column_sums, t, columns);
            case DType::bf16:
                return finish_columns<activation, integer, None, bf16_t>(g, column_sums, t,
                                                                         columns);
            default:
                return finish_columns<activation, integer, None, void>(g, column_sums, t, columns);
        }
    }
    if (g.residual_dtype == DType::f32 && g.out_dtype == DType::f32) {
        return finish_columns<activation, integer, float, float>(g, column_sums, t, columns);
    }
    finish_columns<activation, integer, void, void>(g, column_sums, t, columns);
}

// Sums of high and low halves (GemmArgs::x_halves) into float sums of the rows that they came from:
// two rows of `sums` into one, `rows` of them, which finish_tile<false> takes.
inline void join_halves(const GemmArgs& g, const std::int32_t* column_sums, std::uint8_t* sums,
                        const TileSums& t, int columns) {
    for (int c = 0; c < columns && t.column + c < g.n; c += F32::lanes) {
        const index_t column = t.column + c, left = g.n - column;
        const F32 w_scale = left < F32::lanes ? load_n(g.w_scale + column, static_cast<int>(left))
                                              : load(g.w_scale + column);
        const I32 offset = mul(set1_i32(kHalfZero), load(column_sums + column));
        const auto centred = [&](index_t row) {
            const std::uint8_t* at = sums + row * t.stride + c * 4;
            return to_f32(sub(load(reinterpret_cast<const std::int32_t*>(at)), offset));
        };
        for (index_t i = 0; i < t.rows; ++i) {
            const F32 sum = fma(centred(2 * i + 1), set1(1.0f / 256), centred(2 * i));
            // x_scale is a power of two: only the product with w_scale rounds.
            const F32 y = mul(mul(sum, w_scale), set1(g.x_scale[t.row + i]));
            store(reinterpret_cast<float*>(sums + i * t.stride + c * 4), y);
        }
    }
}

template <bool integer>
inline void finish_tile(const GemmArgs& g, const std::int32_t* column_sums, const TileSums& t,
                        int columns) {
    with_activation(g.activation, [&](auto activation) {
        finish_columns<decltype(activation)::value, integer>(g, column_sums, t, columns);
    });
}

// The stores of a tile would otherwise wait for their lines one after the other (measured: 4 to 6 %
// of an int8 gemm 3072 wide).
inline void prefetch_out(const GemmArgs& g, const TileSums& t, int columns) {
    const index_t size = size_of(g.out_dtype);
    const index_t left = g.n - t.column;
    const index_t bytes = (left < columns ? left : columns) * size;
    for (int i = 0; i < t.rows; ++i) {
        const char* p =
            static_cast<const char*>(g.out) + ((t.row + i) * g.out_stride + t.column) * size;
        __builtin_prefetch(p, 1, 3);
        __builtin_prefetch(p + bytes - 1, 1, 3);
    }
}

// Writes the rows that a tile of sums stands for, `panels` panels of them side by side.
template <bool integer>
inline void finish_panels(const GemmArgs& g, const std::int32_t* column_sums, std::uint8_t* sums,
                          TileSums done, int columns, int panels) {
    for (int j = 0; j < panels; ++j, sums += index_t{4} * columns) {
        done.sums = sums;
        if (integer && g.x_halves) {
            join_halves(g, column_sums, sums, done, columns);
            finish_tile<false>(g, column_sums, done, columns);
        } else {
            finish_tile<integer>(g, column_sums, done, columns);
        }
        done.column += columns;
    }
}

}  // namespace
}  // namespace fastbert
