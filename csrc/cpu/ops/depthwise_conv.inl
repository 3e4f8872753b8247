#pragma once

#include "cpu/ops/depthwise_conv.h"
#include "cpu/vec/sweep.h"

namespace fastbert {
namespace {

// Outputs side by side that one pass over the window computes: with the weights of a row of the
// window and one input they fill the registers, and each input is loaded once for all of them.
constexpr int depthwise_tile = F32::lanes >= 16 ? 8 : 4;
// Channels whose tile waits in the first-level cache for the activation.
constexpr int depthwise_strip = 4 * F32::lanes;

// Where a tile reads: addresses of the first channel, by row of the window and column of the map.
template <int kernel, int stride, typename T>
struct DepthwiseWindow {
    static constexpr int columns = (depthwise_tile - 1) * stride + kernel;
    const T* at[kernel][columns];
    int first, last;  // the rows of the window that lie within the map
};

template <int kernel, int stride, typename T>
inline void place_window(const DepthwiseArgs& args, const T* map, const T* zeros, index_t top,
                         index_t left, DepthwiseWindow<kernel, stride, T>& window) {
    window.first = top < 0 ? static_cast<int>(-top) : 0;
    window.last = top + kernel > args.height ? static_cast<int>(args.height - top) : kernel;
    for (int y = window.first; y < window.last; ++y) {
        const T* row = map + (top + y) * args.width * args.channels;
        for (int j = 0; j < window.columns; ++j) {
            const index_t x = left + j;
            window.at[y][j] = x < 0 || x >= args.width ? zeros : row + x * args.channels;
        }
    }
}

// One vector of channels of a tile. The products of an output are added in the order of the window.
template <int kernel, int stride, typename T, typename Extent>
inline __attribute__((always_inline)) void depthwise_tile_of(
    const DepthwiseWindow<kernel, stride, T>& window, const float* weight, const float* bias,
    index_t channels, index_t c, float* tile, Extent extent) {
    F32 sum[depthwise_tile];
    const F32 start = bias == nullptr ? zero() : load(bias + c, extent);
    for (int t = 0; t < depthwise_tile; ++t) sum[t] = start;
    for (int y = window.first; y < window.last; ++y) {
        F32 w[kernel];
        for (int x = 0; x < kernel; ++x) {
            w[x] = load(weight + (y * kernel + x) * channels + c, extent);
        }
#pragma GCC unroll 20
        for (int j = 0; j < window.columns; ++j) {
            const F32 v = load(window.at[y][j] + c, extent);
#pragma GCC unroll 5
            for (int x = 0; x < kernel; ++x) {
                const int from = j - x;
                if (from < 0 || from % stride != 0 || from / stride >= depthwise_tile) continue;
                sum[from / stride] = fma(v, w[x], sum[from / stride]);
            }
        }
    }
    for (int t = 0; t < depthwise_tile; ++t) store(tile + t * depthwise_strip, sum[t]);
}

// out = activation(tile), and the sums of its outputs onto `sums`.
template <Activation activation, typename T>
inline void finish_tile(const DepthwiseArgs& args, const float* tile, index_t first,
                        index_t channels, int outputs, T* out, float* sums) {
    const ActivationLanes params(args.activation_params);
    for (index_t c = 0; c < channels; c += F32::lanes) {
        const auto vector = [&](auto extent) {
            F32 sum = load(sums + first + c, extent);
            for (int t = 0; t < outputs; ++t) {
                const F32 y = apply<activation>(load(tile + t * depthwise_strip + c), params);
                store(out + t * args.channels + first + c, y, extent);
                sum = add(sum, y);
            }
            store(sums + first + c, sum, extent);
        };
        if (c + F32::lanes <= channels) {
            vector(Whole{});
        } else {
            vector(Part{static_cast<int>(channels - c)});
        }
    }
}

template <int kernel, int stride, typename T>
void depthwise_row(const DepthwiseArgs& args, const float* weight, const float* bias,
                   const T* zeros, float* sums, index_t image, index_t y) {
    constexpr index_t lanes = F32::lanes;
    const index_t width = depthwise_extent(args, args.width);
    const index_t row = image * depthwise_extent(args, args.height) + y;
    const T* map = static_cast<const T*>(args.x) + image * args.height * args.width * args.channels;
    alignas(64) float tile[depthwise_tile * depthwise_strip];
    DepthwiseWindow<kernel, stride, T> window;
    sums += row * args.channels;
    for (index_t c = 0; c < args.channels; ++c) sums[c] = 0.0f;
    for (index_t x = 0; x < width; x += depthwise_tile) {
        const int outputs =
            static_cast<int>(width - x < depthwise_tile ? width - x : depthwise_tile);
        T* out = static_cast<T*>(args.out) + (row * width + x) * args.channels;
        place_window(args, map, zeros, y * stride - args.before, x * stride - args.before, window);
        for (index_t first = 0; first < args.channels; first += depthwise_strip) {
            const index_t left = args.channels - first;
            const index_t channels = left < depthwise_strip ? left : depthwise_strip;
            index_t c = 0;
            for (; c + lanes <= channels; c += lanes) {
                depthwise_tile_of(window, weight, bias, args.channels, first + c, tile + c,
                                  Whole{});
            }
            if (c < channels) {
                depthwise_tile_of(window, weight, bias, args.channels, first + c, tile + c,
                                  Part{static_cast<int>(channels - c)});
            }
            with_activation(args.activation, [&](auto activation) {
                finish_tile<decltype(activation)::value>(args, tile, first, channels, outputs, out,
                                                         sums);
            });
        }
    }
}

template <typename T>
void depthwise_rows(const DepthwiseArgs& args, const float* weight, const float* bias,
                    const void* zeros, float* sums, index_t first, index_t count) {
    const index_t height = depthwise_extent(args, args.height);
    const auto row = args.kernel == 3
                         ? (args.stride == 1 ? depthwise_row<3, 1, T> : depthwise_row<3, 2, T>)
                         : (args.stride == 1 ? depthwise_row<5, 1, T> : depthwise_row<5, 2, T>);
    for (index_t i = first; i < first + count; ++i) {
        row(args, weight, bias, static_cast<const T*>(zeros), sums, i / height, i % height);
    }
}

constexpr DepthwiseConvKernels depthwise_conv_kernels = {
    {depthwise_rows<float>, depthwise_rows<bf16_t>, depthwise_rows<f16_t>}};

}  // namespace
}  // namespace fastbert
