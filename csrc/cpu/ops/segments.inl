#pragma once

#include "cpu/ops/segments.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

// One strip of columns of one segment: its sums stay in registers while the rows pass.
template <int vectors, typename T, typename Extent>
inline void segment_strip(const T* x, index_t stride, index_t rows, const float* divisor,
                          float* out, Extent extent) {
    F32 sum[vectors];
    for (int v = 0; v < vectors; ++v) sum[v] = zero();
    for (index_t row = 0; row < rows; ++row) {
        const T* from = x + row * stride;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            sum[v] = add(sum[v], load(from + v * F32::lanes, extent));
        }
    }
    for (int v = 0; v < vectors; ++v) {
        if (divisor != nullptr) sum[v] = div(sum[v], set1(*divisor));
        store(out + v * F32::lanes, sum[v], extent);
    }
}

template <typename T>
void segment_sums_of(const SegmentArgs& args, index_t first, index_t count) {
    constexpr int strip = 8;
    constexpr index_t lanes = F32::lanes;
    for (index_t s = first; s < first + count; ++s) {
        const index_t begin = args.bounds[s], rows = args.bounds[s + 1] - begin;
        const T* x = static_cast<const T*>(args.x) + begin * args.x_stride;
        const float* divisor = args.divisors == nullptr ? nullptr : args.divisors + s;
        float* out = args.out + s * args.columns;
        index_t c = 0;
        for (; c + strip * lanes <= args.columns; c += strip * lanes) {
            segment_strip<strip>(x + c, args.x_stride, rows, divisor, out + c, Whole{});
        }
        for (; c + lanes <= args.columns; c += lanes) {
            segment_strip<1>(x + c, args.x_stride, rows, divisor, out + c, Whole{});
        }
        if (c < args.columns) {
            const Part part{static_cast<int>(args.columns - c)};
            segment_strip<1>(x + c, args.x_stride, rows, divisor, out + c, part);
        }
    }
}

constexpr SegmentKernels segments_kernels = {
    {segment_sums_of<float>, segment_sums_of<bf16_t>, segment_sums_of<f16_t>}};

}  // namespace
}  // namespace fastbert
