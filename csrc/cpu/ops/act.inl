#pragma once

#include "cpu/ops/act.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

template <typename T, Activation activation>
void act_rows_of(const ActArgs& args, const float* bias, index_t first, index_t count) {
    for (index_t row = first; row < first + count; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
        T* out = static_cast<T*>(args.out) + row * args.out_stride;
        sweep(args.columns, [&](index_t i, auto extent, int) {
            F32 v = load(x + i, extent);
            if (bias != nullptr) v = add(v, load(bias + i, extent));
            store(out + i, apply<activation>(v), extent);
        });
    }
}

template <typename T>
void act_rows(const ActArgs& args, const float* bias, index_t first, index_t count) {
    switch (args.activation) {
        case Activation::none:
            return act_rows_of<T, Activation::none>(args, bias, first, count);
        case Activation::gelu:
            return act_rows_of<T, Activation::gelu>(args, bias, first, count);
        case Activation::gelu_tanh:
            return act_rows_of<T, Activation::gelu_tanh>(args, bias, first, count);
        case Activation::relu:
            return act_rows_of<T, Activation::relu>(args, bias, first, count);
        case Activation::silu:
            return act_rows_of<T, Activation::silu>(args, bias, first, count);
        case Activation::tanh:
            return act_rows_of<T, Activation::tanh>(args, bias, first, count);
    }
}

constexpr ActKernels act_kernels = {{act_rows<float>, act_rows<bf16_t>, act_rows<f16_t>}};

}  // namespace
}  // namespace fastbert
