#pragma once

#include "cpu/ops/rms_norm.h"
#include "cpu/vec/rms.h"

namespace fastbert {
namespace {

template <typename T>
void rms_norm_rows(const RmsNormArgs& args, const float* weight, index_t first, index_t count,
                   float* scratch) {
    for (index_t row = first; row < first + count; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
        const T* residual = static_cast<const T*>(args.residual);
        if (residual != nullptr) residual += row * args.residual_stride;
        T* out = static_cast<T*>(args.out) + row * args.out_stride;
        T* sum = static_cast<T*>(args.sum);
        if (sum != nullptr) sum += row * args.sum_stride;
        const F32 scale = root_mean_square(args.hidden, args.eps, [&](index_t i, auto extent) {
            F32 s = load(x + i, extent);
            if (residual != nullptr) s = add(s, load(residual + i, extent));
            store(scratch + i, s, extent);
            if (sum != nullptr) store(sum + i, s, extent);
            return s;
        });
        sweep(args.hidden, [&](index_t i, auto extent, int) {
            const F32 y = mul(mul(load(scratch + i, extent), scale), load(weight + i, extent));
            store(out + i, y, extent);
        });
    }
}

constexpr RmsNormKernels rms_norm_kernels = {
    {rms_norm_rows<float>, rms_norm_rows<bf16_t>, rms_norm_rows<f16_t>}};

}  // namespace
}  // namespace fastbert
