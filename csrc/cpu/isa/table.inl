// Compiled once per instruction set, after its vec header. Everything but the table itself lives in
// an anonymous namespace: a symbol shared with other files could be merged by the linker with its
// flagged copy, and then crash a CPU that lacks the instructions (tests/native checks with nm).
#include "cpu/kernels.h"
#include "cpu/ops/act.inl"
#include "cpu/ops/attention.inl"
#include "cpu/ops/embed.inl"
#include "cpu/ops/gemm.inl"
#include "cpu/ops/layer_norm.inl"
#include "cpu/ops/peak.inl"
#include "cpu/ops/quantize.inl"
#include "cpu/ops/segments.inl"
#include "cpu/ops/vec_math.inl"

namespace fastbert {

extern const KernelTable FASTBERT_KERNEL_TABLE;

// constexpr, hence filled at compile time: no code of this file may run while the library loads.
// clang-format off
constexpr KernelTable FASTBERT_KERNEL_TABLE = {
    vec_math_kernels,
    layer_norm_kernels,
    act_kernels,
    embed_kernels,
    attention_kernels,
    gemm_kernels,
    quantize_kernels,
    segment_kernels,
    peak_kernels,
};
// clang-format on

}  // namespace fastbert
