#include "cpu/kernels.h"

#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "isa_table.h"

namespace fastbert {

// The kernels of one op for one instruction set are defined by isa/<isa>.cpp, compiled for that op.
// The tables hold addresses only, which the linker knows: nothing runs while the library loads.
#define ROW(isa, mask)                                                                        \
    extern const VecMathKernels vec_math_kernels_##isa;                                       \
    extern const LayerNormKernels layer_norm_kernels_##isa;                                   \
    extern const ActKernels act_kernels_##isa;                                                \
    extern const EmbedKernels embed_kernels_##isa;                                            \
    extern const AttentionKernels attention_kernels_##isa;                                    \
    extern const GemmKernels gemm_kernels_##isa;                                              \
    extern const QuantizeKernels quantize_kernels_##isa;                                      \
    extern const SegmentKernels segments_kernels_##isa;                                       \
    extern const PeakKernels peak_kernels_##isa;                                              \
    extern const RmsNormKernels rms_norm_kernels_##isa;                                       \
    extern const QkNormRopeKernels qk_norm_rope_kernels_##isa;                                \
    extern const AttentionDecodeKernels attention_decode_kernels_##isa;                       \
    extern const DropoutKernels dropout_kernels_##isa;                                        \
    extern const DepthwiseConvKernels depthwise_conv_kernels_##isa;                           \
    extern const ChannelGateKernels channel_gate_kernels_##isa;                               \
    constexpr KernelTable kernels_##isa = {                                                   \
        vec_math_kernels_##isa, layer_norm_kernels_##isa,     act_kernels_##isa,              \
        embed_kernels_##isa,    attention_kernels_##isa,      gemm_kernels_##isa,             \
        quantize_kernels_##isa, segments_kernels_##isa,       peak_kernels_##isa,             \
        rms_norm_kernels_##isa, qk_norm_rope_kernels_##isa,   attention_decode_kernels_##isa, \
        dropout_kernels_##isa,  depthwise_conv_kernels_##isa, channel_gate_kernels_##isa,     \
    };
FASTBERT_COMPILED_ISAS(ROW)
#undef ROW

const KernelTable& kernels(Isa isa) {
    switch (isa) {
#define ROW(name, mask) \
    case Isa::name:     \
        return kernels_##name;
        FASTBERT_COMPILED_ISAS(ROW)
#undef ROW
        default:
            break;
    }
    throw std::invalid_argument(std::string("this build holds no kernels for ") + name_of(isa));
}

const KernelTable& active_kernels() { return kernels(active()); }

}  // namespace fastbert
