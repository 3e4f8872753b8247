#include "cpu/ops/attention.h"
#include "python/bind.h"

namespace fastbert {

void bind_attention(py::module_& m) {
    m.def(
        "attention_varlen",
        [](address_t q, address_t k, address_t v, address_t out, int dtype, index_t total_q,
           index_t total_k, index_t num_heads, index_t head_dim, index_t q_row_stride,
           index_t q_head_stride, index_t k_row_stride, index_t k_head_stride, index_t v_row_stride,
           index_t v_head_stride, index_t out_row_stride, index_t out_head_stride,
           address_t cu_seqlens_q, address_t cu_seqlens_k, index_t batch, index_t max_seqlen_q,
           index_t max_seqlen_k, double scale, bool causal, address_t key_bias, address_t bias,
           index_t bias_batch_stride, index_t bias_head_stride, index_t bias_query_stride) {
            AttentionArgs args{};
            args.q = pointer(q);
            args.k = pointer(k);
            args.v = pointer(v);
            args.out = pointer(out);
            args.dtype = DType(dtype);
            args.total_q = total_q;
            args.total_k = total_k;
            args.num_heads = num_heads;
            args.head_dim = head_dim;
            args.q_row_stride = q_row_stride;
            args.q_head_stride = q_head_stride;
            args.k_row_stride = k_row_stride;
            args.k_head_stride = k_head_stride;
            args.v_row_stride = v_row_stride;
            args.v_head_stride = v_head_stride;
            args.out_row_stride = out_row_stride;
            args.out_head_stride = out_head_stride;
            args.cu_seqlens_q = pointer<std::int32_t>(cu_seqlens_q);
            args.cu_seqlens_k = pointer<std::int32_t>(cu_seqlens_k);
            args.batch = batch;
            args.max_seqlen_q = max_seqlen_q;
            args.max_seqlen_k = max_seqlen_k;
            args.scale = static_cast<float>(scale);
            args.causal = causal;
            args.key_bias = pointer<float>(key_bias);
            args.bias = pointer<float>(bias);
            args.bias_batch_stride = bias_batch_stride;
            args.bias_head_stride = bias_head_stride;
            args.bias_query_stride = bias_query_stride;
            attention_varlen(args);
        },
        py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("dtype"),
        py::arg("total_q"), py::arg("total_k"), py::arg("num_heads"), py::arg("head_dim"),
        py::arg("q_row_stride"), py::arg("q_head_stride"), py::arg("k_row_stride"),
        py::arg("k_head_stride"), py::arg("v_row_stride"), py::arg("v_head_stride"),
        py::arg("out_row_stride"), py::arg("out_head_stride"), py::arg("cu_seqlens_q"),
        py::arg("cu_seqlens_k"), py::arg("batch"), py::arg("max_seqlen_q"), py::arg("max_seqlen_k"),
        py::arg("scale"), py::arg("causal"), py::arg("key_bias"), py::arg("bias"),
        py::arg("bias_batch_stride"), py::arg("bias_head_stride"), py::arg("bias_query_stride"),
        release_gil(),
        "Attention of packed sequences. Pointers as integers (key_bias and bias float32, 0: "
        "absent; "
        "cu_seqlens int32), strides in elements, codes of common/types.h.");
}

}  // namespace fastbert
