#include "cpu/ops/attention.h"
#include "python/bind.h"

namespace fastbert {

FASTBERT_RECORD(AttentionArgs)

void bind_attention(py::module_& m) {
#define FIELD(member, required) FASTBERT_FIELD(AttentionArgs, #member, member, required)
    Record<AttentionArgs>::add(m, "csrc/cpu/ops/attention.h",
                               {
                                   FIELD(q, true),
                                   FIELD(k, true),
                                   FIELD(v, true),
                                   FIELD(out, true),
                                   FIELD(dtype, true),
                                   FIELD(total_q, true),
                                   FIELD(total_k, true),
                                   FIELD(num_heads, true),
                                   FIELD(head_dim, true),
                                   FIELD(group, false),
                                   FIELD(q_row_stride, true),
                                   FIELD(q_head_stride, true),
                                   FIELD(k_row_stride, true),
                                   FIELD(k_head_stride, true),
                                   FIELD(v_row_stride, true),
                                   FIELD(v_head_stride, true),
                                   FIELD(out_row_stride, true),
                                   FIELD(out_head_stride, true),
                                   FIELD(cu_seqlens_q, true),
                                   FIELD(cu_seqlens_k, true),
                                   FIELD(batch, true),
                                   FIELD(max_seqlen_q, true),
                                   FIELD(max_seqlen_k, true),
                                   FIELD(scale, true),
                                   FIELD(causal, false),
                                   FIELD(key_bias, false),
                                   FIELD(bias, false),
                                   FIELD(bias_batch_stride, false),
                                   FIELD(bias_head_stride, false),
                                   FIELD(bias_query_stride, false),
                               });
#undef FIELD
    m.def("attention_varlen", static_cast<void (*)(const AttentionArgs&)>(attention_varlen),
          py::arg("args"), release_gil(), "Attention of packed sequences.");
}

}  // namespace fastbert
