#pragma once

#include "cpu/ops/channel_gate.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

template <typename T>
void gate_factors(const GateArgs& args, float* factors) {
    const T* gates = static_cast<const T*>(args.gates);
    sweep(args.batch * args.channels, [&](index_t i, auto extent, int) {
        store(factors + i, sigmoid(load(gates + i, extent)), extent);
    });
}

template <typename T>
void gate_rows(const GateArgs& args, const float* factors, index_t first, index_t count) {
    for (index_t row = first; row < first + count; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.channels;
        T* out = static_cast<T*>(args.out) + row * args.channels;
        const float* factor = factors + row / args.places * args.channels;
        sweep(args.channels, [&](index_t i, auto extent, int) {
            store(out + i, mul(load(x + i, extent), load(factor + i, extent)), extent);
        });
    }
}

constexpr ChannelGateKernels channel_gate_kernels = {
    {gate_factors<float>, gate_factors<bf16_t>, gate_factors<f16_t>},
    {gate_rows<float>, gate_rows<bf16_t>, gate_rows<f16_t>}};

}  // namespace
}  // namespace fastbert
