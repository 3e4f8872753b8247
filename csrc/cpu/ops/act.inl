#pragma once

#include "cpu/ops/act.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

template <typename T, Activation activation>
void act_rows_of(const ActArgs& args, const float* bias, index_t first, index_t count) {
    const ActivationLanes params(args.activation_params);
    for (index_t row = first; row < first + count; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
        T* out = static_cast<T*>(args.out) + row * args.out_stride;
        sweep(args.columns, [&](index_t i, auto extent, int) {
            F32 v = load(x + i, extent);
            if (bias != nullptr) v = add(v, load(bias + i, extent));
            store(out + i, apply<activation>(v, params), extent);
        });
    }
}

template <typename T>
void act_rows(const ActArgs& args, const float* bias, index_t first, index_t count) {
    with_activation(args.activation, [&](auto activation) {
        act_rows_of<T, decltype(activation)::value>(args, bias, first, count);
    });
}

constexpr ActKernels act_kernels = {{act_rows<float>, act_rows<bf16_t>, act_rows<f16_t>}};

}  // namespace
}  // namespace fastbert
