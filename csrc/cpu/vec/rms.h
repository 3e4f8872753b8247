// The root of a row's mean square, for normalisations. Included by ops after a vec header.
#pragma once

#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

// 1 / sqrt(mean(s^2) + eps) in every lane, s being what source(i, extent) yields for a row of n.
template <typename Source>
inline __attribute__((always_inline)) F32 root_mean_square(index_t n, float eps, Source&& source) {
    Sums squares;
    sweep(n, [&](index_t i, auto extent, int slot) {
        const F32 s = keep(source(i, extent), extent);
        squares.part[slot] = fma(s, s, squares.part[slot]);
    });
    const F32 mean = div(set1(squares.total()), set1(static_cast<float>(n)));
    return div(set1(1.0f), sqrt(add(mean, set1(eps))));
}

}  // namespace
}  // namespace fastbert
