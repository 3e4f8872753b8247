// One table of function pointers per instruction set. To add an op: a header with its <Op>Kernels
// struct, a field here, and a line in isa/table.inl.
#pragma once

#include "cpu/ops/act.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/embed.h"
#include "cpu/ops/gemm.h"
#include "cpu/ops/layer_norm.h"
#include "cpu/ops/peak.h"
#include "cpu/ops/quantize.h"
#include "cpu/ops/segments.h"
#include "cpu/ops/vec_math.h"

namespace fastbert {

enum class Isa : int;  // cpu/isa.h, which the flagged files do not need

struct KernelTable {
    VecMathKernels vec_math;
    LayerNormKernels layer_norm;
    ActKernels act;
    EmbedKernels embed;
    AttentionKernels attention;
    GemmKernels gemm;
    QuantizeKernels quantize;
    SegmentKernels segments;
    PeakKernels peak;
};

// The kernels of `isa`, which must be one of usable_isas().
const KernelTable& kernels(Isa isa);

// The kernels of the set in use (isa.h: active(), whose errors this passes on).
const KernelTable& active_kernels();

}  // namespace fastbert
