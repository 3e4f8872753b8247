// The row ops of decoders.
#include "cpu/ops/attention_decode.h"
#include "cpu/ops/qk_norm_rope.h"
#include "cpu/ops/rms_norm.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(RmsNormArgs)
FASTBERT_RECORD(QkNormRopeArgs)

void bind_decoding(py::module_& m) {
#define FIELD(name, member, required) FASTBERT_FIELD(RmsNormArgs, name, member, required)
    Record<RmsNormArgs>::add(m, "csrc/cpu/ops/rms_norm.h",
                             {
                                 FIELD("x", x, true),
                                 FIELD("residual", residual, false),
                                 FIELD("out", out, true),
                                 FIELD("sum", sum, false),
                                 FIELD("weight", weight.data, true),
                                 FIELD("weight_dtype", weight.dtype, true),
                                 FIELD("rows", rows, true),
                                 FIELD("hidden", hidden, true),
                                 FIELD("x_stride", x_stride, true),
                                 FIELD("residual_stride", residual_stride, false),
                                 FIELD("out_stride", out_stride, true),
                                 FIELD("sum_stride", sum_stride, false),
                                 FIELD("dtype", dtype, true),
                                 FIELD("eps", eps, true),
                             });
#undef FIELD
#define FIELD(name, member) FASTBERT_FIELD(QkNormRopeArgs, name, member, true)
    Record<QkNormRopeArgs>::add(m, "csrc/cpu/ops/qk_norm_rope.h",
                                {
                                    FIELD("q", q.data),
                                    FIELD("q_row_stride", q.row_stride),
                                    FIELD("q_head_stride", q.head_stride),
                                    FIELD("k", k.data),
                                    FIELD("k_row_stride", k.row_stride),
                                    FIELD("k_head_stride", k.head_stride),
                                    FIELD("q_out", q_out.data),
                                    FIELD("q_out_row_stride", q_out.row_stride),
                                    FIELD("q_out_head_stride", q_out.head_stride),
                                    FIELD("k_out", k_out.data),
                                    FIELD("k_out_row_stride", k_out.row_stride),
                                    FIELD("k_out_head_stride", k_out.head_stride),
                                    FIELD("q_weight", q_weight.data),
                                    FIELD("q_weight_dtype", q_weight.dtype),
                                    FIELD("k_weight", k_weight.data),
                                    FIELD("k_weight_dtype", k_weight.dtype),
                                    FIELD("cos", cos),
                                    FIELD("sin", sin),
                                    FIELD("rope_stride", rope_stride),
                                    FIELD("tokens", tokens),
                                    FIELD("num_heads", num_heads),
                                    FIELD("num_kv_heads", num_kv_heads),
                                    FIELD("head_dim", head_dim),
                                    FIELD("dtype", dtype),
                                    FIELD("q_eps", q_eps),
                                    FIELD("k_eps", k_eps),
                                });
#undef FIELD
    m.def("rms_norm", rms_norm, py::arg("args"), release_gil(),
          "out = s / sqrt(mean(s^2) + eps) * weight for s = x + residual.");
    m.def("qk_norm_rope", qk_norm_rope, py::arg("args"), release_gil(),
          "Normalise and rotate the heads of q and k.");
}

}  // namespace fastbert
