// Maps whose channels are weighted: out = x * sigmoid(gates), with one gate for each channel of an
// image. The end of squeeze-and-excitation.
#pragma once

#include "common/types.h"

namespace fastbert {

struct GateArgs {
    const void* x = nullptr;      // (batch * places, channels) of dtype, without gaps
    const void* gates = nullptr;  // (batch, channels) of dtype, without gaps
    void* out = nullptr;          // as x; may be x itself
    index_t batch = 0;
    index_t places = 0;
    index_t channels = 0;
    DType dtype = DType::f32;
};

struct ChannelGateKernels {
    // The factors of all images, sigmoid(gates). Indexed by DType: f32, bf16, f16.
    void (*factors[3])(const GateArgs& args, float* factors);
    // Rows [first, first + count) of the batch * places rows.
    void (*rows[3])(const GateArgs& args, const float* factors, index_t first, index_t count);
};

// Throws std::invalid_argument, with a sentence, for arguments that do not fit together.
void channel_gate(const GateArgs& args);

}  // namespace fastbert
