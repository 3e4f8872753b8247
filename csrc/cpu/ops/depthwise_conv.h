// A convolution of each channel by itself over maps whose channels lie side by side, with bias and
// activation, and the mean of every channel of the result, which squeeze-and-excitation asks for.
#pragma once

#include "common/types.h"
#include "cpu/ops/params.h"

namespace fastbert {

struct DepthwiseArgs {
    const void* x = nullptr;  // (batch, height, width, channels) of dtype, without gaps
    void* out = nullptr;      // (batch, out_height, out_width, channels) of dtype, without gaps
    float* means = nullptr;   // (batch, channels): of out, before it is rounded
    Param weight;             // (kernel, kernel, channels)
    Param bias;               // (channels), or absent
    index_t batch = 0;
    index_t height = 0;
    index_t width = 0;
    index_t channels = 0;
    index_t kernel = 0;  // 3 or 5: the side of the window
    index_t stride = 0;  // 1 or 2
    index_t before = 0;  // zeros above and to the left of a map, at most kernel - 1
    index_t after = 0;   // zeros below and to the right, at most kernel - 1
    DType dtype = DType::f32;
    Activation activation = Activation::none;
    ActivationParams activation_params;
};

// The height or width of the result; at most 0 where the window does not fit.
inline index_t depthwise_extent(const DepthwiseArgs& args, index_t extent) {
    const index_t room = extent + args.before + args.after - args.kernel;
    return room < 0 ? 0 : room / args.stride + 1;
}

struct DepthwiseConvKernels {
    // Rows [first, first + count) of the (batch * out_height) rows of the result. `zeros`: at
    // least channels + 16 elements of dtype; `sums`: (batch * out_height, channels), the sums over
    // each row. Indexed by DType: f32, bf16, f16.
    void (*rows[3])(const DepthwiseArgs& args, const float* weight, const float* bias,
                    const void* zeros, float* sums, index_t first, index_t count);
};

// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void depthwise_conv(const DepthwiseArgs& args);

}  // namespace fastbert
