#pragma once

#include "cpu/ops/gemm_tile.inl"
#include "cpu/ops/peak.h"
#include "cpu/vec/tile_amx.h"

namespace fastbert {
namespace {

// The sums of the largest tile, and its order of steps, without its loads.
template <typename D>
double steps(index_t rounds, void* sink) {
    constexpr index_t sum_bytes = index_t{D::kLanes} * 4;
    alignas(64) std::uint8_t buffer[2 * D::kRows * sum_bytes] = {};
    // A compiler that knew the values would merge equal sums and drop the loop.
    const auto forget = [&] { __asm__ volatile("" : : "r"(buffer) : "memory"); };
    forget();
    typename D::Acc acc[D::kRows][2];
    const typename D::Right right = D::right(buffer);
    FASTBERT_UNROLL
    for (int i = 0; i < D::kRows; ++i) {
        acc[i][0] = D::load(buffer + 2 * i * sum_bytes);
        acc[i][1] = D::load(buffer + (2 * i + 1) * sum_bytes);
    }
    for (index_t n = 0; n < rounds; ++n) {
        forget();
        const typename D::Left left = D::left(buffer);
        FASTBERT_UNROLL
        for (int i = 0; i < D::kRows; ++i) {
            D::step(acc[i][0], acc[i][1], left, right, right);
        }
    }
    FASTBERT_UNROLL
    for (int i = 1; i < D::kRows; ++i) {
        acc[0][0] = D::add(acc[0][0], acc[i][0]);
        acc[0][1] = D::add(acc[0][1], acc[i][1]);
    }
    D::store(buffer, D::add(acc[0][0], acc[0][1]));
    *static_cast<std::uint8_t*>(sink) = buffer[0];
    return static_cast<double>(rounds) * D::kRows * 2 * D::kLanes * D::kGroup;
}

#if defined(__AMX_TILE__)
constexpr PeakKernels peak_kernels = {steps<DotF32>, tmul_peak<false>, tmul_peak<true>};
#else
constexpr PeakKernels peak_kernels = {steps<DotF32>, steps<DotBf16>, steps<DotU8S8>};
#endif

}  // namespace
}  // namespace fastbert
