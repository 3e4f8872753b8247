#pragma once

#include "cpu/ops/layer_norm.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

// Normalises the row that source(i, extent) yields. Two passes over float32 values kept in scratch
// (a row fits the first-level cache), the second one corrected: the mean of the deviations, exactly
// zero in real arithmetic, measures the rounding of the first mean, and is subtracted again. So
// rows with |mean| = 100 std lose no digits to the mean's own rounding.
template <typename T, typename Source>
inline __attribute__((always_inline)) void normalise_row(index_t hidden, const NormParams& norm,
                                                         float* scratch, T* out, T* sum,
                                                         Source&& source) {
    const float count = static_cast<float>(hidden);
    Sums sums;
    sweep(hidden, [&](index_t i, auto extent, int slot) {
        const F32 s = source(i, extent);
        store(scratch + i, s, extent);
        if (sum != nullptr) store(sum + i, s, extent);
        sums.part[slot] = add(sums.part[slot], s);
    });
    const F32 mean = set1(sums.total() / count);

    Sums deviations, squares;
    sweep(hidden, [&](index_t i, auto extent, int slot) {
        const F32 d = keep(sub(load(scratch + i, extent), mean), extent);
        deviations.part[slot] = add(deviations.part[slot], d);
        squares.part[slot] = fma(d, d, squares.part[slot]);
    });
    const F32 correction = set1(deviations.total() / count);
    const F32 variance = max(zero(), fnma(correction, correction, set1(squares.total() / count)));
    const F32 rstd = div(set1(1.0f), sqrt(add(variance, set1(norm.eps))));

    sweep(hidden, [&](index_t i, auto extent, int) {
        const F32 d = sub(sub(load(scratch + i, extent), mean), correction);
        const F32 y = fma(mul(d, rstd), load(norm.weight + i, extent), load(norm.bias + i, extent));
        store(out + i, y, extent);
    });
}

template <typename T, Activation activation>
void layer_norm_rows_of(const LayerNormArgs& args, const float* x_bias, const NormParams& norm,
                        index_t first, index_t count, float* scratch) {
    const ActivationLanes params(args.activation_params);
    for (index_t row = first; row < first + count; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
        const T* residual = static_cast<const T*>(args.residual);
        if (residual != nullptr) residual += row * args.residual_stride;
        T* out = static_cast<T*>(args.out) + row * args.out_stride;
        T* sum = static_cast<T*>(args.sum);
        if (sum != nullptr) sum += row * args.sum_stride;
        normalise_row(args.hidden, norm, scratch, out, sum, [&](index_t i, auto extent) {
            F32 s = load(x + i, extent);
            if (x_bias != nullptr) s = add(s, load(x_bias + i, extent));
            s = keep(apply<activation>(s, params), extent);
            if (residual != nullptr) s = add(s, load(residual + i, extent));
            return s;
        });
    }
}

template <typename T>
void layer_norm_rows(const LayerNormArgs& args, const float* x_bias, const NormParams& norm,
                     index_t first, index_t count, float* scratch) {
    with_activation(args.activation, [&](auto activation) {
        layer_norm_rows_of<T, decltype(activation)::value>(args, x_bias, norm, first, count,
                                                           scratch);
    });
}

constexpr LayerNormKernels layer_norm_kernels = {
    {layer_norm_rows<float>, layer_norm_rows<bf16_t>, layer_norm_rows<f16_t>}};

}  // namespace
}  // namespace fastbert
