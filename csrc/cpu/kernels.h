// One table of function pointers per instruction set. To add an op: a header with its <Op>Kernels
// struct, <op>.inl that ends with <op>_kernels, a field here, two lines in kernels.cpp, and its
// name in FASTBERT_OPS of cmake/isa.cmake.
#pragma once

#include "cpu/ops/act.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/attention_decode.h"
#include "cpu/ops/channel_gate.h"
#include "cpu/ops/depthwise_conv.h"
#include "cpu/ops/dropout.h"
#include "cpu/ops/embed.h"
#include "cpu/ops/gemm.h"
#include "cpu/ops/layer_norm.h"
#include "cpu/ops/peak.h"
#include "cpu/ops/qk_norm_rope.h"
#include "cpu/ops/quantize.h"
#include "cpu/ops/rms_norm.h"
#include "cpu/ops/segments.h"
#include "cpu/ops/vec_math.h"

namespace fastbert {

enum class Isa : int;  // cpu/isa.h, which the flagged files do not need

struct KernelTable {
    const VecMathKernels& vec_math;
    const LayerNormKernels& layer_norm;
    const ActKernels& act;
    const EmbedKernels& embed;
    const AttentionKernels& attention;
    const GemmKernels& gemm;
    const QuantizeKernels& quantize;
    const SegmentKernels& segments;
    const PeakKernels& peak;
    const RmsNormKernels& rms_norm;
    const QkNormRopeKernels& qk_norm_rope;
    const AttentionDecodeKernels& attention_decode;
    const DropoutKernels& dropout;
    const DepthwiseConvKernels& depthwise_conv;
    const ChannelGateKernels& channel_gate;
};

// The kernels of `isa`, which must be one of usable_isas().
const KernelTable& kernels(Isa isa);

// The kernels of the set in use (isa.h: active(), whose errors this passes on).
const KernelTable& active_kernels();

}  // namespace fastbert
