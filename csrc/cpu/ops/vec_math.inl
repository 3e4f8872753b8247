#pragma once

#include "cpu/ops/vec_math.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

template <F32 (*function)(F32)>
void map_array(const float* x, float* y, index_t n) {
    sweep(n, [&](index_t i, auto extent, int) {
        store(y + i, function(load(x + i, extent)), extent);
    });
}

template <Activation activation>
F32 activated(F32 x) {
    return apply<activation>(x, ActivationLanes({}));
}

template <typename T>
void widen_array(const void* x, float* y, index_t n) {
    const T* from = static_cast<const T*>(x);
    sweep(n, [&](index_t i, auto extent, int) { store(y + i, load(from + i, extent), extent); });
}

template <typename T>
void narrow_array(const float* x, void* y, index_t n) {
    T* to = static_cast<T*>(y);
    sweep(n, [&](index_t i, auto extent, int) { store(to + i, load(x + i, extent), extent); });
}

float sum_array(const float* x, index_t n) {
    Sums sums;
    sweep(n, [&](index_t i, auto extent, int slot) {
        sums.part[slot] = add(sums.part[slot], load(x + i, extent));
    });
    return sums.total();
}

constexpr VecMathKernels vec_math_kernels = {
    map_array<exp>,
    map_array<erf>,
    {map_array<activated<Activation::none>>, map_array<activated<Activation::gelu>>,
     map_array<activated<Activation::gelu_tanh>>, map_array<activated<Activation::relu>>,
     map_array<activated<Activation::silu>>, map_array<activated<Activation::tanh>>},
    {widen_array<float>, widen_array<bf16_t>, widen_array<f16_t>},
    {narrow_array<float>, narrow_array<bf16_t>, narrow_array<f16_t>},
    sum_array,
    F32::lanes,
};

}  // namespace
}  // namespace fastbert
